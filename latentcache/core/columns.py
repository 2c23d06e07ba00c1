"""Columns in chunks: what Arrow does by putting all chunks together first, done chunk by chunk."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a column's values are lists, of one length or of several."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds)


def list_of(kind: pa.DataType, values: pa.Field) -> pa.DataType:
    """Return the type of lists like those of another type, with other values."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(values, kind.list_size)
    return pa.large_list(values) if pa.types.is_large_list(kind) else pa.list_(values)


def same_values(one: pa.ChunkedArray, other: pa.ChunkedArray) -> list[bool]:
    """Tell for each row whether two columns have the same value. NaN is itself; 1 and 1.0 differ."""
    if one.type == other.type:  # times as numbers: Python has none of nanoseconds, or after 9999
        kind = _in_numbers(one.type)
        one, other = one.cast(kind), other.cast(kind)
    pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
    return [repr(a) == repr(b) for a, b in pairs]


def differing(one: Any, other: Any) -> npt.NDArray[np.bool_]:
    """Tell in which rows two columns have other values. NaN is itself, and null is null."""
    if one.type == other.type and not pa.types.is_nested(other.type):
        with contextlib.suppress(pa.ArrowNotImplementedError):
            return _compared(one, other)
    return ~np.array(same_values(one, other), bool)


def _compared(one: Any, other: Any) -> npt.NDArray[np.bool_]:
    unequal = pc.fill_null(pc.not_equal(one, other), False)
    one_null = pc.xor(pc.is_null(one), pc.is_null(other))
    found = pc.or_(unequal, one_null)
    if pa.types.is_floating(other.type):
        both = pc.and_(pc.is_nan(one), pc.is_nan(other))
        found = pc.and_(found, pc.invert(pc.fill_null(both, False)))
    return np.asarray(found.to_numpy(zero_copy_only=False), bool)


def _in_numbers(kind: pa.DataType) -> pa.DataType:
    """Return a type with numbers for times, and values for the codes of categories, also in its parts."""
    if pa.types.is_dictionary(kind):
        return _in_numbers(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_numbers(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(*map(_in_numbers, (kind.key_type, kind.item_type)))
    if is_list(kind):
        return list_of(kind, kind.value_field.with_type(_in_numbers(kind.value_type)))
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's values as Python's objects.

    Times in nanoseconds, which no object of Python's can hold, are whole numbers of nanoseconds. A time
    of another unit in a year that Python does not know is a number of its unit.
    """
    if "[ns" in str(column.type):
        return column.cast(_in_numbers(column.type)).to_pylist()  # type: ignore[no-any-return]
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError):
        kind = _in_numbers(column.type)
        return [_python_value(value, kind) for value in column]


def _python_value(value: pa.Scalar, kind: pa.DataType) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return pa.array([value]).cast(kind)[0].as_py()


def taken(column: pa.ChunkedArray, rows: npt.NDArray[Any]) -> pa.Array:
    """Return the values of some rows, null for -1."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks], dtype=np.int64)
    is_ordered = bool((rows[1:] >= rows[:-1]).all())
    order = np.arange(0) if is_ordered else np.argsort(rows, kind="stable")
    ordered = rows if is_ordered else rows[order]
    cuts = np.searchsorted(ordered, [0, *ends.tolist()])
    parts = [pa.nulls(int(cuts[0]), column.type)]
    for number in np.flatnonzero(np.diff(cuts)).tolist():
        chunk = column.chunk(number)
        first = int(ends[number]) - len(chunk)
        parts.append(chunk.take(pa.array(ordered[cuts[number] : cuts[number + 1]] - first)))
    joined = pa.concat_arrays(parts)
    if is_ordered:
        return joined
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    return joined.take(pa.array(back))


def replaced(
    column: pa.ChunkedArray, mask: npt.NDArray[np.bool_], values: list[str]
) -> pa.ChunkedArray:
    """Return a column of texts with others where a mask is true, one after the other."""
    chunks, row, taken_in = [], 0, 0
    for chunk in column.chunks:
        here = mask[row : row + len(chunk)]
        some = values[taken_in : taken_in + int(here.sum())]
        row, taken_in = row + len(chunk), taken_in + len(some)
        texts = pa.array(some, column.type)
        chunks.append(pc.replace_with_mask(chunk, pa.array(here), texts) if some else chunk)
    return pa.chunked_array(chunks, column.type)
