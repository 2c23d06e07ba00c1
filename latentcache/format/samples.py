"""The rows of a shard that count: its sample table without retired rows, with its captions of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.errors import CorruptionError
from latentcache.format.changes import without_rows
from latentcache.format.columns import read_columns, with_columns
from latentcache.format.damage import damaged
from latentcache.format.paths import columns_path, sample_path
from latentcache.format.schemas import SAMPLE_SCHEMA, check_samples, object_facts
from latentcache.format.tables import read_table
from latentcache.storage.folder import Storage


def read_samples(
    storage: Storage,
    fingerprint: str,
    row: Mapping[str, Any],
    columns: list[str] | None = None,
) -> pa.Table:
    """Return the rows of a shard that count, or some of their columns.

    row: of the snapshot. Raises CorruptionError, also where the table has other clips than the snapshot
    counts, by which samples are numbered.
    """
    shard, retired, folder = ShardId(row["bucket"], row["shard"]), row["retired"], row["columns"]
    table = read_all_rows(storage, fingerprint, shard, columns)
    if retired:
        table = without_rows(table, retired)
    _check_counts(storage, table, row)
    if folder:
        changed = read_columns(storage, folder, shard)
        fresh = [name for name in changed.column_names[1:] if columns is None or name in columns]
        try:
            table = _replaced(table, changed, fresh, columns is None)
        except ValueError as error:
            raise damaged(storage, columns_path(folder, *shard), str(error)) from error
    return (
        table if columns is None else table.select([n for n in columns if n in table.column_names])
    )


def _check_counts(storage: Storage, table: pa.Table, row: Mapping[str, Any]) -> None:
    found = {"num_clips": table.num_rows}
    if "status" in table.column_names:
        found["num_ok"] = pc.sum(pc.equal(table["status"], "ok")).as_py() or 0
    for name, what in (("num_clips", "clips that count"), ("num_ok", "ok clips")):
        if found.get(name, row[name]) != row[name]:
            said = f"has {found[name]} {what}, and the snapshot says {row[name]}"
            raise damaged(storage, sample_path(row["bucket"], row["shard"]), said)


def _replaced(table: pa.Table, changed: pa.Table, fresh: list[str], whole: bool) -> pa.Table:
    """Return the table with what changed; kept columns that the corpus no longer has are dropped."""
    table = with_columns(table, changed, fresh)
    if not whole:
        return table
    known = {*SAMPLE_SCHEMA.names, *changed.column_names}
    return table.select([name for name in table.column_names if name in known])


def read_all_rows(
    storage: Storage, fingerprint: str, shard: ShardId, columns: list[str] | None = None
) -> pa.Table:
    """Return all rows of a shard as they were committed, or some of their columns and `row`.

    Raises CorruptionError.
    """
    path = sample_path(*shard)
    wanted = None if columns is None else [*dict.fromkeys([*columns, "row"])]
    try:
        table = read_table(storage, path, wanted)
        check_samples(table, wanted)
        object_facts(table, fingerprint)
    except FileNotFoundError:
        raise damaged(
            storage,
            path,
            "is missing, although the snapshot lists it",
            may_be_cleaned=True,
        ) from None
    except CorruptionError:
        raise
    except ValueError as error:
        raise damaged(storage, path, f"is no sample table of this cache: {error}") from error
    return table
