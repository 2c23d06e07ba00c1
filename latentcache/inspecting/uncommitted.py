"""Objects of shards without a sample table: of a run that was killed, or of a cache that was here before.

A run that comes to such a shard takes it for its own, or stops because it is of other clips. What stops
a run is a problem, which planning the clips again repairs.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

from latentcache.core.records import ShardId
from latentcache.errors import CorruptionError
from latentcache.format.commit import derive_table, read_object
from latentcache.format.manifest import Manifest
from latentcache.format.planned_rows import difference
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout, Format
from latentcache.format.snapshot import committed_places
from latentcache.format.tables import from_parquet
from latentcache.storage.folder import Storage


def uncommitted_shards(
    storage: Storage, manifest: Manifest, others: Collection[ShardId]
) -> list[ShardId]:
    """Return the planned shards that seem to have an object and no sample table, in order.

    others: shards that are left out. Runs may commit all the while, each object before its sample table.
    So sample tables are looked for after the objects.
    """
    found = _with_object(storage, manifest, others)
    done = set(committed_places(storage, manifest)) if found else set()
    return [shard for shard in found if shard not in done]


def _with_object(
    storage: Storage, manifest: Manifest, others: Collection[ShardId]
) -> list[ShardId]:
    shard_format, layouts = get_format(manifest.format), manifest.layouts()
    found = []
    for bucket in manifest.buckets:
        shards = [ShardId(bucket.name, number) for number in range(bucket.num_shards)]
        left = [shard for shard in shards if shard not in others]
        if left:
            layout = layouts[bucket.name]
            first, second = (shard_format.path(layout, n).split("/") for n in (0, 1))
            at = next(n for n, name in enumerate(first) if name != second[n])
            is_file = at == len(first) - 1
            folder = "/".join(first[:at])
            there = set(storage.names(folder) if is_file else storage.folders(folder))
            found += [
                s for s in left if shard_format.path(layout, s.number).split("/")[at] in there
            ]
    return found


def uncommitted_problem(
    storage: Storage, manifest: Manifest, shard: ShardId, plan: pa.Table | None
) -> str | None:
    """Return why no run can take the object of a shard without a sample table; None if one can, or none is.

    plan: the shard's rows of the plan, None if that cannot be read.
    """
    shard_format, layout = get_format(manifest.format), manifest.layouts()[shard.bucket]
    what = None
    for _ in range(2):  # once more, in case the fault was on the way here
        try:
            what = _problem(storage, manifest, shard_format, layout, shard, plan)
        except (ValueError, CorruptionError) as error:
            what = f"it is no shard of this cache: {error}"
        if what is None:
            break
    return what


def _problem(
    storage: Storage,
    manifest: Manifest,
    shard_format: Format,
    layout: ArrayLayout,
    shard: ShardId,
    plan: pa.Table | None,
) -> str | None:
    data = read_object(storage, shard_format, layout, shard.number)
    if data is None:
        return None
    table = from_parquet(derive_table(shard_format, layout, data, manifest.fingerprint))
    what = None if plan is None else difference(table, plan)
    return None if what is None else f"it {what} than was planned"
