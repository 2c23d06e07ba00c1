"""Kept columns of a corpus in the types that a cache has for them, where no value is lost.

What has no value yet, a column, an object's member, items of a list or a map, has Arrow's type null in a
cache. It takes the type of the first values that come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.casts import held, shown
from latentcache.core.columns import is_list, list_of
from latentcache.core.kinds import unlike, unlike_common
from latentcache.corpus.column_types import is_list_of_text
from latentcache.corpus.source_table import SEVERAL
from latentcache.errors import CorpusError
from latentcache.format.per_frame import PER_FRAME, with_types_of


def as_known(corpus: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return a corpus whose kept columns have their types of the cache. Raises CorpusError.

    Captions of a corpus that has one text per source now are lists where the cache keeps lists of them.
    """
    corpus = _with_lists_of_captions(corpus, types.get(SEVERAL))
    for name, known in types.items():
        if name in corpus.column_names:
            kind = completed(known, corpus[name].type)
            if corpus[name].type != kind:
                values = _known(name, corpus[name], kind)
                corpus = corpus.set_column(corpus.column_names.index(name), name, values)
    return corpus


def _with_lists_of_captions(corpus: pa.Table, known: pa.DataType | None) -> pa.Table:
    """Return a corpus with its captions as lists of one text each, if only the cache has lists."""
    if SEVERAL in corpus.column_names or known is None or not is_list_of_text(known):
        return corpus
    lists = [_lists_of_one(chunk) for chunk in corpus["caption"].chunks]
    kind = pa.list_(pa.string())
    return corpus.append_column(SEVERAL, pa.chunked_array(lists, kind))


def _lists_of_one(texts: pa.Array) -> pa.Array:
    """Return lists of one text each; null for null."""
    ends = np.cumsum([0, *np.asarray(texts.is_valid())], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), texts.drop_null(), mask=texts.is_null())


def completed(kind: pa.DataType, other: pa.DataType | None) -> pa.DataType:
    """Return a type whose parts of type null are those of another type."""
    if other is None or kind == other:
        return kind
    if pa.types.is_null(kind):
        return other
    if pa.types.is_struct(kind) and pa.types.is_struct(other):
        others = {field.name: field.type for field in other}
        return pa.struct([f.with_type(completed(f.type, others.get(f.name))) for f in kind])
    if is_list(kind) and is_list(other):
        inner = kind.value_field.with_type(completed(kind.value_type, other.value_type))
        return list_of(kind, inner)
    if pa.types.is_map(kind) and pa.types.is_map(other):
        key = kind.key_field.with_type(completed(kind.key_type, other.key_type))
        item = kind.item_field.with_type(completed(kind.item_type, other.item_type))
        return pa.map_(key, item, kind.keys_sorted)
    return kind


def _known(name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return converted(name, column, kind)
    except ValueError as error:
        raise CorpusError(
            f"corpus.keep: {name} is {kind} in the cache, {column.type} now, and its values "
            f"do not fit ({error}). Nothing was changed. Give the column its type of before, or "
            "keep it under another name."
        ) from None


def converted(
    name: str, column: pa.ChunkedArray, kind: pa.DataType, *, may_lack: bool = False
) -> pa.ChunkedArray:
    """Return a kept column in another type. Raises ValueError, which says why, if values would be lost.

    may_lack: objects may lack members that the type has, which are null then.
    """
    given, is_per_frame = column.type, name == PER_FRAME
    column = pa.chunked_array(_fitted(column.chunks or [pa.array([], given)], given, kind))
    why = (unlike_common if is_per_frame else unlike)(column.type, kind, may_lack=may_lack)
    if why is not None:
        raise ValueError(why)
    made = pa.chunked_array([parts_held(chunk, kind) for chunk in column.chunks])
    try:
        return with_types_of(made, kind) if is_per_frame else made.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        value = next((value for value in column if value.is_valid), pa.scalar(None))
        raise ValueError(
            f"values such as {shown(value)} of type {given} do not fit {kind}"
        ) from None


def _fitted(chunks: Sequence[Any], given: pa.DataType, kind: pa.DataType) -> Sequence[Any]:
    """Return the chunks of a column, of which the parts that have no value are of another type's types."""
    if given == kind:
        return chunks
    if all(chunk.null_count == len(chunk) for chunk in chunks):
        return [pa.nulls(len(chunk), kind) for chunk in chunks]
    if pa.types.is_struct(given) and pa.types.is_struct(kind):
        return _fitted_structs(chunks, given, kind)
    if is_list(given) and is_list(kind):
        return _fitted_lists(chunks, given, kind)
    return chunks


def _fitted_structs(
    chunks: Sequence[Any], given: pa.StructType, kind: pa.StructType
) -> Sequence[Any]:
    known = {field.name: field.type for field in kind}
    of_chunk = [chunk.flatten() for chunk in chunks]
    members = [
        _fitted([each[n] for each in of_chunk], field.type, known.get(field.name, field.type))
        for n, field in enumerate(given)
    ]
    fields = [field.with_type(fitted[0].type) for field, fitted in zip(given, members, strict=True)]
    return [
        pa.StructArray.from_arrays([m[n] for m in members], fields=fields, mask=chunk.is_null())
        for n, chunk in enumerate(chunks)
    ]


def _fitted_lists(chunks: Sequence[Any], given: pa.DataType, kind: pa.DataType) -> Sequence[Any]:
    values = [chunk.flatten() for chunk in chunks]  # of lists that are not null
    fitted = _fitted(values, given.value_type, kind.value_type)
    if all(new is old for new, old in zip(fitted, values, strict=True)):
        return chunks
    return [_lists(chunk, new) for chunk, new in zip(chunks, fitted, strict=True)]


def parts_held(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return values whose innermost parts are of another type's types. Raises ValueError, see `held`."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    given = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if given == kind or pa.types.is_null(given) or pa.types.is_null(kind):
        return values
    if pa.types.is_struct(given):
        return _structs_held(values, kind)
    if pa.types.is_map(given):
        return _maps_held(values, kind)
    if is_list(given):
        _check_lengths(values, kind)
        return _lists(values, parts_held(values.flatten(), kind.value_type))
    return held(values, kind)


def _structs_held(structs: pa.StructArray, kind: pa.StructType) -> pa.StructArray:
    known = {field.name: field.type for field in kind}
    fields = list(structs.type)
    members = [
        parts_held(member, known.get(field.name, field.type))
        for member, field in zip(structs.flatten(), fields, strict=True)
    ]
    made = [f.with_type(member.type) for f, member in zip(fields, members, strict=True)]
    return pa.StructArray.from_arrays(members, fields=made, mask=structs.is_null())


def _maps_held(maps: pa.MapArray, kind: pa.MapType) -> pa.MapArray:
    entry = pa.struct([maps.type.key_field, maps.type.item_field])
    lists = maps.cast(pa.list_(entry))
    keys, items = lists.flatten().flatten()
    made = parts_held(keys, kind.key_type), parts_held(items, kind.item_type)
    ends = _lists(lists, pa.nulls(len(keys))).offsets.cast(pa.int32())
    is_null = pa.concat_arrays([maps.is_null(), pa.array([False])])
    return pa.MapArray.from_arrays(pc.if_else(is_null, None, ends), *made)


def _check_lengths(lists: pa.Array, kind: pa.DataType) -> None:
    """Raise ValueError if a type has lists of one length, and some are of another."""
    if pa.types.is_fixed_size_list(kind):
        is_other = pc.not_equal(pc.list_value_length(lists), kind.list_size)
        rows = np.flatnonzero(pc.fill_null(is_other, False))
        if len(rows):
            value = lists[int(rows[0])]
            raise ValueError(
                f"{shown(value)} has {len(value)} values, not the {kind.list_size} of {kind}"
            )


def _lists(like: Any, values: pa.Array) -> pa.Array:
    """Return lists of the same lengths with other values."""
    lengths = pc.fill_null(pc.list_value_length(like), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0]), pc.cumulative_sum(lengths)])
    return pa.LargeListArray.from_arrays(offsets, values, mask=like.is_null())
