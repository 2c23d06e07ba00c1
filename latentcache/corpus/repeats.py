"""Rows with the same name in a table: of one video they are told apart by numbers."""

from __future__ import annotations

import operator
import posixpath
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import replaced
from latentcache.core.names import may_repeat
from latentcache.storage.urls import public_name, without_file_scheme

Mask = npt.NDArray[np.bool_]


def first_unlike(
    names: pa.ChunkedArray,
    values: pa.ChunkedArray,
    among: Mask,
    same: Callable[[str, str], bool] = operator.eq,
) -> int | None:
    """Return the first row that has the name of an earlier one and another value; None if there is none.

    among: where names may be repeated. same: whether two values are one.
    """
    first: dict[str, str] = {}
    some = (column.filter(pa.array(among)).to_pylist() for column in (names, values))
    for row, name, value in zip(np.flatnonzero(among).tolist(), *some, strict=True):
        if not same(first.setdefault(name, value), value):
            return int(row)
    return None


def same_place(url: str, other: str) -> bool:
    """Tell whether two URLs are of one place: each row may be signed by itself, or spelled otherwise."""
    return url == other or _place(url) == _place(other)


def _place(url: str) -> str:
    scheme, mark, path = public_name(without_file_scheme(url)).rpartition("://")
    return scheme.lower() + mark + posixpath.normpath(path)


def number_repeated(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Make names unique: the second `a.mp4` becomes `a.mp4@2`, the third `a.mp4@3`."""
    is_repeated = may_repeat(names)
    taken = set(names.filter(pc.match_substring_regex(names, r"@\d+$")).to_pylist())
    seen: Counter[str] = Counter()
    numbered = []
    for name in names.filter(pa.array(is_repeated)).to_pylist():
        seen[name] += 1
        while seen[name] > 1 and f"{name}@{seen[name]}" in taken:
            seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return replaced(names, is_repeated, numbered)
