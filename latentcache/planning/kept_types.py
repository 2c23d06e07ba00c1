"""Kept columns of a corpus in the types that a cache has for them, where no value is lost."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from latentcache.core.columns import is_list
from latentcache.errors import CorpusError
from latentcache.format.per_frame import PER_FRAME, with_types_of


def as_known(corpus: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return a corpus whose kept columns have their types of the cache. Raises CorpusError."""
    for name, kind in types.items():
        if name in corpus.column_names and corpus[name].type != kind:
            values = _converted(name, corpus[name], kind)
            corpus = corpus.set_column(corpus.column_names.index(name), name, values)
    return corpus


def _converted(name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    is_per_frame = name == PER_FRAME
    why = _per_frame_loss(column.type, kind) if is_per_frame else cast_loss(column.type, kind)
    if why is None:
        try:
            return with_types_of(column, kind) if is_per_frame else column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            why = str(error)
    raise CorpusError(
        f"corpus.keep: {name} is {kind} in the cache, {column.type} now, and its values "
        f"do not fit ({why}). Nothing was changed. Give the column its type of before, or "
        "keep it under another name."
    )


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
