"""Columns that a cache keeps of its corpus: in types that every reader of Parquet knows, without secrets.

Columns stay in Arrow, also the texts in lists and objects: a corpus may have ten million rows.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.corpus.column_types import is_text
from latentcache.errors import CorpusError
from latentcache.storage.urls import SLASHES, TOKENS, TOKENS_IN_TEXT, WHOLE_URL

#: Types of lists: how many buffers they have besides their values, and what makes such a type.
_LISTS: dict[Any, tuple[int, Any]] = {
    pa.types.is_list: (2, pa.list_),
    pa.types.is_large_list: (2, pa.large_list),
    pa.types.is_list_view: (3, pa.list_view),
    pa.types.is_large_list_view: (3, pa.large_list_view),
    pa.types.is_fixed_size_list: (1, None),
    pa.types.is_map: (2, None),
}
_PLAIN: dict[Any, pa.DataType] = {
    pa.types.is_float16: pa.float32(),
    pa.types.is_string_view: pa.string(),
    pa.types.is_binary_view: pa.binary(),
}


def keepable(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of corpus.keep in a type that can be stored, compared and joined, without secrets.

    A UUID becomes its text, and JSON stays the text that it is. URLs in texts lose users, passwords,
    signatures and tokens; what else they ask for stays. What has no value, such as a column of nulls, has
    Arrow's type null: see `kept_types`. Raises CorpusError for objects without members, which Parquet
    cannot hold.
    """
    _refuse_empty(name, column.type)
    chunks = column.chunks or [pa.array([], column.type)]
    return pa.chunked_array([_kept(chunk) for chunk in chunks])


def _kept(values: pa.Array) -> pa.Array:
    """Return values as they are kept: the same array if there is nothing to change."""
    kind = values.type
    if isinstance(kind, pa.UuidType):
        texts = [None if value is None else str(value) for value in values.to_pylist()]
        return pa.array(texts, pa.string())
    if isinstance(kind, pa.BaseExtensionType):
        return _kept(values.storage)
    if pa.types.is_dictionary(kind):
        return _kept_dictionary(values)
    if pa.types.is_struct(kind):
        return _kept_struct(values)
    for is_list, how in _LISTS.items():
        if is_list(kind):
            return _kept_lists(values, *how)
    for is_other, plain in _PLAIN.items():
        if is_other(kind):
            values = values.cast(plain)
    return _without_secrets(values) if is_text(values.type) else values


def _kept_dictionary(values: pa.DictionaryArray) -> pa.Array:
    kept = _kept(values.dictionary)
    if pa.types.is_null(kept.type):
        return pa.nulls(len(values))
    if kept is values.dictionary:
        return values
    once = kept.dictionary_encode()  # texts that differed in their secrets only are one now
    indices = once.indices.take(values.indices).cast(values.type.index_type)
    return pa.DictionaryArray.from_arrays(indices, once.dictionary, ordered=values.type.ordered)


def _kept_struct(values: pa.StructArray) -> pa.Array:
    given = [values.field(n) for n in range(values.type.num_fields)]
    kept = [_kept(member) for member in given]
    if all(new is old for new, old in zip(kept, given, strict=True)):
        return values
    fields = [
        field.with_type(new.type) for field, new in zip(values.type.fields, kept, strict=True)
    ]
    return pa.StructArray.from_arrays(kept, fields=fields, mask=values.is_null())


def _kept_lists(values: Any, num_buffers: int, type_of: Any) -> pa.Array:
    """Return lists with other values: their offsets, also those of a slice, stay."""
    inner = values.values
    kept = _kept(inner)
    if kept is inner:
        return values
    if pa.types.is_map(values.type):
        fields = kept.type.field(0), kept.type.field(1)
        kind = pa.map_(*fields, values.type.keys_sorted)
    else:
        field = values.type.value_field.with_type(kept.type)
        kind = type_of(field) if type_of else pa.list_(field, values.type.list_size)
    buffers = values.buffers()[:num_buffers]
    return pa.Array.from_buffers(kind, len(values), buffers, -1, values.offset, [kept])


def _without_secrets(texts: pa.Array) -> pa.Array:
    has_url = pc.match_substring_regex(texts, SLASHES)
    if not pc.any(has_url).as_py():
        return texts
    is_url = pc.match_substring_regex(texts, WHOLE_URL)
    for among, secrets in ((is_url, TOKENS), (pc.and_not(has_url, is_url), TOKENS_IN_TEXT)):
        if not pc.any(among).as_py():
            continue
        for pattern, shown in secrets:
            told = pc.and_(among, pc.match_substring_regex(texts, pattern))
            if pc.any(told).as_py():
                without = pc.replace_substring_regex(texts, pattern, shown)
                texts = pc.if_else(told, without, texts)
    return texts


def _refuse_empty(name: str, kind: pa.DataType) -> None:
    if pa.types.is_struct(kind) and not kind.num_fields:
        raise CorpusError(
            f"corpus.keep: {name!r} holds objects that have no members in any row, which Parquet cannot "
            "store. Remove it from corpus.keep, or give its objects members."
        )
    for number in range(kind.num_fields):
        _refuse_empty(name, kind.field(number).type)
