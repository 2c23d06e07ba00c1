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

from latentcache.core.columns import is_list, list_of
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


def converted(name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a kept column in another type. Raises ValueError, which says why, if values would be lost."""
    given, is_per_frame = column.type, name == PER_FRAME
    column = pa.chunked_array(_fitted(column.chunks or [pa.array([], given)], given, kind))
    why = _per_frame_loss(column.type, kind) if is_per_frame else cast_loss(column.type, kind)
    if why is not None:
        raise ValueError(why)
    try:
        return with_types_of(column, kind) if is_per_frame else column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(str(error)) from None


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


def _lists(like: Any, values: pa.Array) -> pa.Array:
    """Return lists of the same lengths with other values."""
    lengths = pc.fill_null(pc.list_value_length(like), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0]), pc.cumulative_sum(lengths)])
    return pa.LargeListArray.from_arrays(offsets, values, mask=like.is_null())


def cast_loss(now: pa.DataType, before: pa.DataType) -> str | None:
    """Return what Arrow's cast between two types would lose without an error; None if nothing.

    It leaves out the fields of a struct that the other type lacks, sets those that only the other has to
    null, and makes every number but 0 true.
    """
    now, before = _plain(now), _plain(before)
    if pa.types.is_null(now) or pa.types.is_null(before):
        return None
    if pa.types.is_boolean(now) != pa.types.is_boolean(before):
        return f"{now} and {before} are not the same values"
    if pa.types.is_struct(now) and pa.types.is_struct(before):
        return _struct_loss(now, before)
    if pa.types.is_map(now) and pa.types.is_map(before):
        keys = cast_loss(now.key_type, before.key_type)
        return keys or cast_loss(now.item_type, before.item_type)
    if is_list(now) and is_list(before):
        return cast_loss(now.value_type, before.value_type)
    return None


def _struct_loss(now: pa.StructType, before: pa.StructType) -> str | None:
    names, known = (sorted(field.name for field in kind) for kind in (now, before))
    if names != known:
        return f"its fields were {', '.join(known) or 'none'}, and are {', '.join(names) or 'none'}"
    return _field_loss(now, before)


def _per_frame_loss(now: pa.DataType, before: pa.DataType) -> str | None:
    """Columns per frame may come and go: only those that both have are compared."""
    if not pa.types.is_struct(before):
        return None
    return _field_loss(now, before)


def _field_loss(now: pa.StructType, before: pa.StructType) -> str | None:
    types = {field.name: field.type for field in before}
    losses = (cast_loss(field.type, types[field.name]) for field in now if field.name in types)
    return next(filter(None, losses), None)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
