"""Masks over the rows of Arrow's tables: of ten million sources, none becomes a Python object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken

Mask = npt.NDArray[np.bool_]
Rows = TypeVar("Rows", pa.Table, pa.ChunkedArray)

#: Rows that are chosen among, or that become Python's objects, at a time.
CHUNK_ROWS = 1 << 16


def mask_of(column: Any) -> Mask:
    """Return a column of booleans as a mask [rows]; null is False."""
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), bool)


def same(one: Any, other: Any) -> Mask:
    """Tell in which rows two columns have the same value; null is the same as null."""
    return mask_of(pc.equal(one, other)) | mask_of(pc.and_(pc.is_null(one), pc.is_null(other)))


def chosen(rows: Rows, mask: Mask, keep: Callable[[Rows], Rows] = lambda rows: rows) -> Rows:
    """Return the rows of a mask; all of them are not copied.

    keep: takes some of them and returns the same rows, from where they need no memory.
    """
    if mask.all():
        return rows
    parts = [rows.slice(0, 0)]
    for start in range(0, len(mask), CHUNK_ROWS):
        here = mask[start : start + CHUNK_ROWS]
        if here.any():
            parts.append(keep(rows.slice(start, CHUNK_ROWS).filter(pa.array(here))))
    if isinstance(rows, pa.Table):
        return pa.concat_tables(parts)
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], rows.type)


def pieces(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Cut an array into parts of CHUNK_ROWS values."""
    for start in range(0, len(values), CHUNK_ROWS):
        yield values[start : start + CHUNK_ROWS]


def looked_up(column: pa.ChunkedArray, rows: npt.NDArray[Any]) -> pa.ChunkedArray:
    """Return the values of some rows, null for -1, in chunks: texts of one chunk have 2 GiB at most."""
    return pa.chunked_array([taken(column, some) for some in pieces(rows)], column.type)


def repeated(value: str, number: int) -> pa.ChunkedArray:
    """Return a column of one text, in chunks that share their memory."""
    chunk = pa.repeat(pa.scalar(value, pa.string()), min(number, CHUNK_ROWS))
    chunks = [chunk.slice(0, number - start) for start in range(0, number, CHUNK_ROWS)]
    return pa.chunked_array(chunks, pa.string())


def no_names() -> pa.ChunkedArray:
    """Return names of no source."""
    return pa.chunked_array([], pa.string())
