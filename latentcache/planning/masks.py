"""Masks over the rows of Arrow's tables: of ten million sources, none becomes a Python object."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]


def mask_of(column: Any) -> Mask:
    """Return a column of booleans as a mask [rows]; null is False."""
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), bool)


def same(one: Any, other: Any) -> Mask:
    """Tell in which rows two columns have the same value; null is the same as null."""
    return mask_of(pc.equal(one, other)) | mask_of(pc.and_(pc.is_null(one), pc.is_null(other)))


def chosen(table: pa.Table, mask: Mask) -> pa.Table:
    """Return the rows of a mask; all of them are not copied."""
    return table if mask.all() else table.filter(pa.array(mask))


def no_names() -> pa.ChunkedArray:
    """Return names of no source."""
    return pa.chunked_array([], pa.string())
