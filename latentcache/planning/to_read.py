"""Which known sources are still to be read: of clips that wait or failed, and of fields that lack some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.names import NameIndex
from latentcache.core.records import ShardId
from latentcache.errors import LatentCacheError
from latentcache.format.fields.manifest import field_names, read_field
from latentcache.format.fields.snapshot import missing_versions, read_field_index
from latentcache.format.manifest import Manifest
from latentcache.format.samples import read_samples
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.format.snapshot import current_index
from latentcache.planning.known import KnownCache
from latentcache.planning.masks import Mask
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage

#: Kinds of fields that are made of other things than a clip's source.
NOT_OF_SOURCES = frozenset({"text", "array", "view", "given"})


def sources_to_read(planned: PlannedCache, known: KnownCache, names: pa.ChunkedArray) -> Mask:
    """Return which of some sources have clips that the cache, or a field, still has to read."""
    found = np.zeros(len(names), bool)
    index = NameIndex(names)
    whole = {*planned.missing_shards(), *_of_fields(planned)}
    failed = _failed_by_shard(planned)
    for group in known.looked_up(index, whole | failed.keys()):
        for shard, rows in group.slices():
            at = group.at[rows]
            if shard not in whole:
                numbers = group.rows["row"].slice(rows.start, len(at))
                at = at[pc.is_in(numbers, value_set=failed[shard]).to_numpy()]
            found[at[at >= 0]] = True
    return found


def _of_fields(planned: PlannedCache) -> Iterator[ShardId]:
    """Yield shards of which some field is still to be made, or failed, of the clips' sources."""
    there = field_names(planned.storage)
    for name in there:
        with suppress(LatentCacheError):  # who makes the field says what is wrong with it
            field = read_field(planned.storage, name, planned.manifest)
            if field.kind not in NOT_OF_SOURCES:
                shards = planned.planned_shards()
                yield from missing_versions(planned.storage, field, planned.manifest, shards)
                index = read_field_index(planned.storage, field)
                rows = index.filter(
                    pc.greater(pc.list_value_length(index["failed"]), 0)
                ).to_pylist()
                yield from (ShardId(row["bucket"], row["shard"]) for row in rows)
    for name, settings in planned.config.fields.items():
        if name not in there and settings.get("kind") not in NOT_OF_SOURCES:
            yield from planned.planned_shards()


def _failed_by_shard(planned: PlannedCache) -> dict[ShardId, pa.Array]:
    """Return which rows of each shard failed."""
    rows = failed_rows(planned.storage, planned.manifest)
    found = rows.group_by(["bucket", "shard"]).aggregate([("row", "list")])
    columns = (found[name].to_pylist() for name in ("bucket", "shard", "row_list"))
    return {
        ShardId(bucket, shard): pa.array(numbers, pa.int32())
        for bucket, shard, numbers in zip(*columns, strict=True)
    }


def failed_rows(storage: Storage, manifest: Manifest) -> pa.Table:
    """Return bucket, shard and row of the failed clips that count. Raises CorruptionError."""
    index = current_index(storage, manifest)
    failed = index.filter(pc.less(index["num_ok"], index["num_clips"]))
    names = ["bucket", "shard", "row", "status"]
    tables = [read_samples(storage, manifest.fingerprint, row, names) for row in failed.to_pylist()]
    if not tables:
        return RETIRED_SCHEMA.empty_table()
    rows = pa.concat_tables(tables)
    return rows.filter(pc.not_equal(rows["status"], "ok"))
