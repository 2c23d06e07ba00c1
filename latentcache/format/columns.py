"""Captions and kept columns that a generation has changed: one small table per shard beside its samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.format.damage import damaged
from latentcache.format.paths import columns_path
from latentcache.format.schemas import PLAN_SCHEMA, SAMPLE_SCHEMA, check_columns
from latentcache.format.tables import read_table
from latentcache.storage.folder import Storage

#: Columns of plans and sample tables that are not kept ones, and that a generation can change.
CAPTION = "caption"
#: The kept column that says how often a loader takes a clip per epoch, see `corpus.weight`.
WEIGHT = "corpus_weight"
_SCHEMA = pa.schema([pa.field("row", pa.int32(), nullable=False), pa.field(CAPTION, pa.string())])


def read_columns(storage: Storage, folder: str, shard: ShardId) -> pa.Table:
    """Read a shard's columns since a generation: `row`, `caption` and those kept from the corpus.

    Raises CorruptionError.
    """
    path = columns_path(folder, *shard)
    try:
        table = read_table(storage, path)
    except FileNotFoundError:
        raise damaged(storage, path, "is missing") from None
    try:
        check_columns(table, _SCHEMA)
        _check_names(table.column_names)
    except ValueError as error:
        raise damaged(storage, path, f"is no table of captions and kept columns: {error}") from None
    return table


def _check_names(names: Sequence[str]) -> None:
    """Raise ValueError if one is there twice, or is the cache's own: places and status never change."""
    own = {*SAMPLE_SCHEMA.names, *PLAN_SCHEMA.names} - {*_SCHEMA.names}
    if tuple(names[:2]) != tuple(_SCHEMA.names):
        raise ValueError(f"it begins with other columns than {', '.join(_SCHEMA.names)}")
    if len({*names}) < len(names) or own.intersection(names):
        raise ValueError("it has a column twice, or one that cannot change")


def with_columns(
    table: pa.Table, columns: pa.Table, names: Iterable[str] | None = None
) -> pa.Table:
    """Return rows of a plan or sample table with their captions and kept columns replaced.

    names: those that are wanted; omitted, all. Raises ValueError if a row has none.
    """
    at = pc.index_in(table["row"], value_set=columns["row"].combine_chunks())
    if at.null_count:
        raise ValueError("the changed columns lack rows of their shard")
    for name in columns.column_names[1:] if names is None else names:
        values = columns[name].take(at)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table
