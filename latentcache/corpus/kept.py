"""Columns that a cache keeps of its corpus, in types that every reader of Parquet knows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from latentcache.errors import CorpusError


def keepable(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of corpus.keep in a type that can be stored, compared and joined.

    A UUID becomes its text, and JSON stays the text that it is. Raises CorpusError for objects without
    members, which Parquet cannot hold.
    """
    _refuse_empty(name, column.type)
    if isinstance(column.type, pa.UuidType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    while isinstance(column.type, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.storage_type)
    for is_other, kind in _PLAIN.items():
        if is_other(column.type):
            return column.cast(kind)
    return column


_PLAIN: dict[Any, pa.DataType] = {
    pa.types.is_null: pa.string(),
    pa.types.is_float16: pa.float32(),
    pa.types.is_string_view: pa.string(),
    pa.types.is_binary_view: pa.binary(),
}


def _refuse_empty(name: str, kind: pa.DataType) -> None:
    if pa.types.is_struct(kind) and not kind.num_fields:
        raise CorpusError(
            f"corpus.keep: {name!r} holds objects that have no members in any row, which Parquet cannot "
            "store. Remove it from corpus.keep, or give its objects members."
        )
    for number in range(kind.num_fields):
        _refuse_empty(name, kind.field(number).type)
