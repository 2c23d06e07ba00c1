"""Columns with a value per frame of a source, such as actions: how they are stored, and cut to a clip.

All of them are children of one kept column, a struct named `per_frame`. Of a source each child has a value
per frame of the source. Of a clip each has one per sampled frame, `frame` says which frames of the source
these are, and `of` how many the source has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core import records
from latentcache.core.columns import is_list

#: The kept column.
PER_FRAME = records.PER_FRAME
#: The children that are the cache's own, and their types.
FRAME, OF = "frame", "of"
OWN = {FRAME: pa.list_(pa.int32()), OF: pa.int32()}

Numbers = npt.NDArray[np.int64]


def value_names(kind: pa.DataType | None) -> list[str]:
    """Return the names of the columns in a kept column's type; none if it is no struct of them."""
    if kind is None or not pa.types.is_struct(kind) or {*OWN} - {f.name for f in kind}:
        return []
    return [field.name for field in kind if field.name not in OWN]


def names_in(schema: pa.Schema) -> list[str]:
    """Return the names of the columns per frame in a table's schema."""
    place = schema.get_field_index(PER_FRAME)
    return value_names(schema.field(place).type) if place >= 0 else []


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a column is kept: lists of numbers, or of vectors. None if it is neither."""
    if pa.types.is_null(kind):
        return pa.list_(pa.float64())
    if not is_list(kind):
        return None
    value = kind.value_type
    if pa.types.is_null(value):
        return pa.list_(pa.float64())
    if _is_number(value):
        return pa.list_(value)
    if is_list(value) and (_is_number(value.value_type) or pa.types.is_null(value.value_type)):
        inner = pa.float64() if pa.types.is_null(value.value_type) else value.value_type
        return pa.list_(pa.list_(inner))
    return None


def _is_number(kind: pa.DataType) -> bool:
    is_float = pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return bool(pa.types.is_integer(kind) or is_float or pa.types.is_boolean(kind))


def struct_of(columns: Mapping[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return columns of sources as one column of structs, of `stored_type`."""
    types = {name: stored_type(column.type) for name, column in columns.items()}
    assert None not in types.values(), "types were checked"
    table = pa.table({name: column.cast(types[name]) for name, column in columns.items()})
    chunks = []
    for batch in table.to_batches():
        own = {name: pa.nulls(batch.num_rows, kind) for name, kind in OWN.items()}
        arrays = [*own.values(), *batch.columns]
        chunks.append(pa.StructArray.from_arrays(arrays, [*own, *columns]))
    fields = [*OWN.items(), *types.items()]
    return pa.chunked_array(chunks, pa.struct(fields))


def problem(values: pa.Scalar, frames: int, widths: dict[str, int]) -> tuple[str, str] | None:
    """Return why the values of a source cannot be cut, as a reason and a message; None if they can.

    widths: of the vectors of each column; those of a column that has none yet are added.
    """
    found: dict[str, int] = {}
    for name in value_names(values.type):
        column = values[name]
        if not column.is_valid:
            return "missing_input", f"there is nothing in {name}, a column of corpus.per_frame"
        items = column.values
        if len(items) != frames:
            return (
                "per_frame",
                f"{name} has {len(items)} values, and the source has {frames} frames",
            )
        if items.null_count:
            at = pc.index(pc.is_null(items), True).as_py()
            return "per_frame", f"{name} has no value at frame {at}"
        if not pa.types.is_list(items.type):
            continue
        lengths = pc.unique(pc.list_value_length(items)).to_pylist()
        if len(lengths) != 1 or items.flatten().null_count:
            return "per_frame", f"the vectors of {name} are not of one length, or lack numbers"
        if widths.get(name, lengths[0]) != lengths[0]:
            return "per_frame", (
                f"the vectors of {name} have {lengths[0]} numbers; those of other sources {widths[name]}"
            )
        found[name] = lengths[0]
    widths.update(found)
    return None


def vector_widths(rows: pa.Table) -> dict[str, list[int]]:
    """Return how many numbers the vectors of a table's columns per frame have; without those of none."""
    found = {}
    for name in names_in(rows.schema):
        values = pc.struct_field(rows[PER_FRAME], name)
        if is_list(values.type.value_type):
            lengths = pc.unique(pc.list_value_length(pc.list_flatten(values)))
            found[name] = sorted(pc.drop_null(lengths).to_pylist())
    return {name: lengths for name, lengths in found.items() if lengths}


def cut(values: Sequence[pa.Scalar], frames: Sequence[Numbers], kind: pa.StructType) -> pa.Array:
    """Return the values of clips. values: of each clip's source; frames: of each clip, all as many."""
    numbers = np.concatenate(frames) if frames else np.zeros(0, np.int64)
    ends = np.cumsum([0, *map(len, frames)], dtype=np.int32)
    arrays: list[pa.Array] = []
    for field in kind:
        if field.name == FRAME:
            arrays.append(_lists(ends, [pa.array(numbers, pa.int32())], field.type))
        elif field.name == OF:
            first = value_names(kind)[0]
            arrays.append(pa.array([len(value[first].values) for value in values], field.type))
        else:
            parts = [
                value[field.name].values.take(pa.array(of_clip))
                for value, of_clip in zip(values, frames, strict=True)
            ]
            arrays.append(_lists(ends, parts, field.type))
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _lists(ends: npt.NDArray[np.int32], parts: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    values = pa.concat_arrays(parts) if parts else pa.array([], kind.value_type)
    return pa.ListArray.from_arrays(pa.array(ends), values).cast(kind)


def with_types_of(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return structs whose children have the types of another column's, where that has them.

    Raises pa.ArrowInvalid or pa.ArrowNotImplementedError where values do not fit.
    """
    known = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    chunks = []
    for chunk in column.chunks:
        names = [field.name for field in column.type]
        arrays = [
            chunk.field(n).cast(known.get(name, chunk.field(n).type))
            for n, name in enumerate(names)
        ]
        chunks.append(pa.StructArray.from_arrays(arrays, names))
    return pa.chunked_array(chunks) if chunks else column


def recut(values: pa.Array, frames: Iterable[Sequence[int] | None]) -> pa.Array:
    """Return values of sources, one per clip, cut to the frames of each clip; null where either is missing.

    values: without a `problem`.
    """
    rows: list[dict[str, Any] | None] = []
    for value, numbers in zip(values, frames, strict=True):
        if not value.is_valid or numbers is None:
            rows.append(None)
            continue
        row: dict[str, Any] = {FRAME: list(numbers)}
        for name in value_names(values.type):
            items = value[name].values
            row[name], row[OF] = items.take(pa.array(numbers, pa.int64())).to_pylist(), len(items)
        rows.append(row)
    return pa.array(rows, values.type)


def to_numpy(values: pa.Scalar) -> npt.NDArray[Any] | None:
    """Return a clip's values as an array [T] or [T, n]; None if there are none."""
    if not values.is_valid:
        return None
    items = values.values
    if not pa.types.is_list(items.type):
        return np.array(items.to_numpy(zero_copy_only=False))
    flat = items.flatten().to_numpy(zero_copy_only=False)
    return np.array(flat).reshape(len(items), -1 if len(flat) else 0)
