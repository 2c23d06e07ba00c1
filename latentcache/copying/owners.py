"""Which of several caches are right about a source: those that have the content that counts.

In numpy and Arrow: of ten million sources, none becomes a Python object. One cache shares nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import NameIndex, Rows
from latentcache.core.units import some_of
from latentcache.errors import CacheError
from latentcache.planning.known_sources import KnownSources
from latentcache.planning.masks import CHUNK_ROWS, Mask, chosen, mask_of

#: Which of several caches is right about a source: the first that has it, or the last.
Prefer = Literal["first", "last"]


class Union:
    """The sources of caches, each with a number that is the same in all of them.

    numbers: those of each cache's rows; size: numbers are smaller.
    """

    def __init__(self, caches: Sequence[KnownSources]) -> None:
        self.caches = caches
        self.size = sum(map(len, caches))
        self.numbers: list[Rows] = (
            [np.arange(self.size, dtype=np.int32)]
            if len(caches) == 1
            else [self.find(cache.table["source"]) for cache in caches]
        )

    @functools.cached_property
    def _index(self) -> NameIndex:
        chunks = [chunk for cache in self.caches for chunk in cache.table["source"].chunks]
        return NameIndex(pa.chunked_array(chunks, pa.string()))

    def find(self, names: pa.ChunkedArray) -> Rows:
        """Return the numbers of sources by name, -1 for one that no cache has."""
        return self._index.find(names)

    def mask(self, names: Collection[str]) -> Mask:
        """Return which numbers are of these sources."""
        found = np.zeros(self.size, bool)
        if names:
            at = self.find(pa.chunked_array([pa.array([*names], pa.string())]))
            found[at[at >= 0]] = True
        return found


class Owners:
    """The caches that are right about each source.

    is_shared: by number, the sources that several caches have. right: of each cache, by number, about which
    sources it is right if it has them.
    Raises CacheError for sources of different content, or of content that some cache does not know, unless
    `prefer` says which.
    """

    def __init__(self, union: Union, prefer: Prefer | None) -> None:
        self.union = union
        counts = np.zeros(union.size, np.int16)
        for numbers in union.numbers:
            counts[numbers] += 1
        self.is_shared: Mask = counts > 1
        self.shares_any = bool(self.is_shared.any())
        self.right = [np.ones(union.size, bool) for _ in union.numbers]
        if not self.shares_any:
            return
        if prefer is None:
            _check_same(union, self.is_shared)
        self._choose(prefer)

    def shared(self, names: pa.ChunkedArray) -> Mask:
        """Return which of some sources several caches have."""
        if not self.shares_any:
            return np.zeros(len(names), bool)
        at = self.union.find(names)
        return (at >= 0) & self.is_shared[at]

    def is_right(self, cache: int, names: pa.ChunkedArray) -> Mask:
        """Return about which of some sources a cache is right."""
        if not self.shares_any:
            return np.ones(len(names), bool)
        at = self.union.find(names)
        return (at < 0) | self.right[cache][at]

    def _choose(self, prefer: Prefer | None) -> None:
        """Find who has the content that counts; if all have rejected a source, it is the first one.

        Content that is not known is no other cache's.
        """
        union, takes = self.union, _takes(self.union)
        all_rows = [np.ones(len(mask), bool) for mask in takes]
        backwards = list(reversed(range(len(takes))))  # the last that is put down counts
        order = backwards if prefer != "last" else backwards[::-1]
        who, where = np.full(union.size, -1, np.int16), np.full(union.size, -1, np.int32)
        for masks, caches in ((all_rows, backwards), (takes, order)):
            for cache in caches:
                _put_down(union, cache, masks[cache], who, where)
        for cache, numbers in enumerate(union.numbers):
            right = who == cache
            for rows, same in _compared(union, cache, takes[cache] & ~right[numbers], who, where):
                right[numbers[rows]] = mask_of(same)
            self.right[cache] = right


def _takes(union: Union) -> list[Mask]:
    """Return of each cache which sources it has not rejected."""
    return [mask_of(pc.not_equal(cache.table["what"], "rejected")) for cache in union.caches]


def _put_down(
    union: Union, cache: int, mask: Mask, who: npt.NDArray[np.int16], where: Rows
) -> None:
    """Note by number that these rows of a cache are the ones that count."""
    numbers = union.numbers[cache][mask]
    who[numbers], where[numbers] = cache, np.flatnonzero(mask)


def _compared(
    union: Union, cache: int, mask: Mask, who: npt.NDArray[np.int16], where: Rows
) -> Iterator[tuple[Rows, pa.Array]]:
    """Yield rows of a cache, and whether the rows that are noted have their content; null: not known."""
    mine, numbers = union.caches[cache].table["identity"], union.numbers[cache]
    for other, of_other in enumerate(union.caches):
        rows = np.flatnonzero(mask & (who[numbers] == other)).astype(np.int32)
        for start in range(0, len(rows), CHUNK_ROWS):
            some = rows[start : start + CHUNK_ROWS]
            theirs = taken(of_other.table["identity"], where[numbers[some]])
            yield some, pc.equal(taken(mine, some), theirs)


def _check_same(union: Union, is_shared: Mask) -> None:
    """Raise CacheError unless the caches that take a source are known to have the same content of it."""
    takes, counts = _takes(union), np.zeros(union.size, np.int16)
    different, lacks = np.zeros(union.size, bool), np.zeros(union.size, bool)
    who, where = np.full(union.size, -1, np.int16), np.full(union.size, -1, np.int32)
    for cache, numbers in enumerate(union.numbers):
        mask = takes[cache] & is_shared[numbers]
        is_known = mask_of(pc.is_valid(union.caches[cache].table["identity"]))
        counts[numbers[mask]] += 1
        lacks[numbers[mask & ~is_known]] = True
        for rows, same in _compared(union, cache, mask & is_known, who, where):
            different[numbers[rows[~mask_of(same)]]] = True
        _put_down(union, cache, mask & is_known, who, where)
    say_whose = "Say whose clips to take: --prefer first, or --prefer last"
    if different.any():
        raise CacheError(
            f"{different.sum()} sources have the same name and other content in several caches: "
            f"{_named(union, different)}. Nothing was written. {say_whose}"
        )
    unknown = lacks & (counts > 1)
    if unknown.any():
        raise CacheError(
            f"{unknown.sum()} sources have the same name in several caches, and not all of these know "
            f"their content, so that it cannot be told whether it is the same: {_named(union, unknown)}. "
            "Nothing was written. `latentcache precompute` on each cache with its corpus finds the content "
            f"of its sources. {say_whose}"
        )


def _named(union: Union, wanted: Mask) -> str:
    """Return the names of some sources, by their numbers: of equal names the first row is the number."""
    chunks = [chunk for cache in union.caches for chunk in cache.table["source"].chunks]
    names = chosen(pa.chunked_array(chunks, pa.string()), wanted)
    return some_of(sorted(names.to_pylist()))
