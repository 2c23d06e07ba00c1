"""Compacting: short shards, and shards with many retired rows, become full ones by one generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.copying.plan_rows import joined_rows
from latentcache.core.records import Bucket, ShardId
from latentcache.format.manifest import Manifest
from latentcache.format.samples import read_all_rows
from latentcache.format.snapshot import shard_of
from latentcache.planning.known import retire
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step

#: Why rows are retired that are not copied.
DROPPED = "failed, and dropped"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """What compacting does to a bucket. shards: those that are rewritten, as rows of the snapshot."""

    bucket: str
    shards: Sequence[Row]
    num_clips: int
    num_new: int

    @property
    def num_retired(self) -> int:
        """Rows of these shards that count no longer."""
        return sum(len(row["retired"] or ()) for row in self.shards)


def choose_shards(
    manifest: Manifest, index: Iterable[Row], *, below: float, drop_failed: bool
) -> list[Rewritten]:
    """Return what is worth rewriting. index: rows of the snapshot.

    A shard is rewritten if fewer than `below` of a full shard's rows count, and either there are fewer
    shards afterwards, or it has rows that do not count. So compacting again finds nothing to do.
    """
    buckets: dict[str, list[Row]] = {}
    for row in index:
        if _num_kept(row, drop_failed) < below * manifest.shard_clips:
            buckets.setdefault(row["bucket"], []).append(row)
    found = [_rewritten(manifest, rows, drop_failed) for rows in buckets.values()]
    return [rewritten for rewritten in found if rewritten.shards]


def _rewritten(manifest: Manifest, rows: Sequence[Row], drop_failed: bool) -> Rewritten:
    def num_new(rows: Sequence[Row]) -> int:
        return -(-sum(_num_kept(row, drop_failed) for row in rows) // manifest.shard_clips)

    if num_new(rows) >= len(rows):
        rows = [
            row for row in rows if row["retired"] or _num_kept(row, drop_failed) < row["num_clips"]
        ]
    return Rewritten(
        bucket=rows[0]["bucket"] if rows else "",
        shards=rows,
        num_clips=sum(_num_kept(row, drop_failed) for row in rows),
        num_new=num_new(rows),
    )


def _num_kept(row: Row, drop_failed: bool) -> int:
    return int(row["num_ok"] if drop_failed else row["num_clips"])


def plan_compaction(
    planned: PlannedCache, chosen: Sequence[Rewritten], *, drop_failed: bool
) -> Step:
    """Plan the clips of chosen shards as rows of new shards, in the order that they have now.

    Captions and kept columns come along as they are now. drop_failed: clips that failed are retired
    instead. Raises CorruptionError.
    """
    step = Step(kind="compact")
    for rewritten in chosen:
        tables = []
        for row in rewritten.shards:
            shard = shard_of(row)
            rows = planned.plan.rows(shard)
            if drop_failed and row["num_ok"] < row["num_clips"]:
                rows = _without_failed(planned, step, shard, rows)
            tables.append(rows)
        joined = joined_rows(tables)
        if joined.num_rows:
            bucket = Bucket.parse(rewritten.bucket)
            step.clips[bucket] = [joined]
            step.origins[bucket] = joined.select(["shard", "row"])
    return step


def _without_failed(planned: PlannedCache, step: Step, shard: ShardId, rows: pa.Table) -> pa.Table:
    table = read_all_rows(planned.storage, planned.manifest.fingerprint, shard, ["row", "status"])
    failed = table.filter(pc.not_equal(table["status"], "ok"))["row"].combine_chunks()
    is_failed = pc.is_in(rows["row"], value_set=failed)
    gone = rows.filter(is_failed)
    named = gone.append_column("bucket", pa.array([shard.bucket] * gone.num_rows, pa.string()))
    step.retired.append(retire(named, DROPPED))
    return rows.filter(pc.invert(is_failed))
