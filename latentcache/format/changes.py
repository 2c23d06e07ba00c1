"""What generations have changed of shards: rows that no longer count, captions and kept columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.format.manifest import Manifest
from latentcache.format.paths import columns_index_path, retired_path
from latentcache.format.schemas import CHANGED_SCHEMA, RETIRED_SCHEMA
from latentcache.format.tables import read_checked
from latentcache.storage.folder import Storage


@dataclass(frozen=True, kw_only=True)
class Changes:
    """retired: rows by shard; columns: the folder of the generation that changed a shard's columns last."""

    retired: Mapping[ShardId, frozenset[int]] = field(default_factory=dict)
    columns: Mapping[ShardId, str] = field(default_factory=dict)

    def rows(self, shard: ShardId) -> list[int]:
        """Return the retired rows of a shard, in order."""
        return sorted(self.retired.get(shard, ()))

    def retired_shards(self, manifest: Manifest) -> set[ShardId]:
        """Return the shards none of whose rows counts: they need not be encoded, and may be cleaned."""
        return {
            shard for shard, rows in self.retired.items() if len(rows) >= manifest.num_rows(shard)
        }


def read_changes(storage: Storage, manifest: Manifest) -> Changes:
    """Read what the generations of a manifest have changed. Raises CorruptionError."""
    retired: dict[ShardId, frozenset[int]] = {}
    columns: dict[ShardId, str] = {}
    for generation in manifest.generations:
        if generation.num_retired:
            table = read_checked(storage, retired_path(generation.folder), RETIRED_SCHEMA)
            for shard, rows in _by_shard(table).items():
                retired[shard] = retired.get(shard, frozenset()) | rows
        if generation.num_relabelled:
            table = read_checked(storage, columns_index_path(generation.folder), CHANGED_SCHEMA)
            for bucket, number in zip(
                table["bucket"].to_pylist(), table["shard"].to_pylist(), strict=True
            ):
                columns[ShardId(bucket, number)] = generation.folder
    return Changes(retired=retired, columns=columns)


def _by_shard(table: pa.Table) -> dict[ShardId, frozenset[int]]:
    groups = table.group_by(["bucket", "shard"]).aggregate([("row", "list")]).to_pydict()
    places = zip(groups["bucket"], groups["shard"], groups["row_list"], strict=True)
    return {ShardId(bucket, shard): frozenset(rows) for bucket, shard, rows in places}


def without_rows(table: pa.Table, rows: frozenset[int] | list[int]) -> pa.Table:
    """Return a sample table without some rows, by the numbers in its column `row`."""
    if not rows:
        return table
    gone = pa.array(np.array(sorted(rows), np.int32))
    return table.filter(pc.invert(pc.is_in(table["row"], value_set=gone)))
