"""Clips of a cache that wait: they are still to be encoded, so that a copy of the cache lacks them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.copying.selection import Selection
from latentcache.core.records import Bucket, ShardId
from latentcache.core.units import some_of
from latentcache.errors import CacheError
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.planning.planned import PlannedCache
from latentcache.reading.cache import Cache
from latentcache.reading.loader.filters import to_expression
from latentcache.reading.shared_schema import with_kept
from latentcache.storage.folder import redact


class WaitingClips:
    """The clips of a cache that a selection keeps and that wait. Not for several threads."""

    def __init__(self, planned: PlannedCache, cache: Cache, selection: Selection) -> None:
        self._planned, self._cache, self._where = planned, cache, selection.where
        # Of each key there is an ok clip, or the selection was refused.
        self._has_any = selection.keys is None

    def clips(self) -> Iterator[tuple[str, str]]:
        """Yield their sources and keys. Raises CacheError where a condition cannot be decided."""
        for shard in self._planned.missing_shards() if self._has_any else ():
            rows = self._kept(shard, self._without_copies(shard))
            yield from zip(rows["source"].to_pylist(), rows["key"].to_pylist(), strict=True)

    def check_whole(self, sources: Collection[str]) -> None:
        """Raise CacheError if the condition keeps some clips of these sources and leaves others out.

        `precompute` on the copy takes in whole sources.
        """
        divided = set[str]()
        for shard, rows in self._planned_of(sources):
            left_out = pc.invert(pc.is_in(rows["key"], value_set=_keys(self._kept(shard, rows))))
            divided.update(rows.filter(left_out)["source"].to_pylist())
        if divided:
            raise self._refusal(
                f"clips that --where keeps are still to be encoded, and it leaves out other clips of their "
                f"sources: {some_of(sorted(divided))}. `precompute` on the new cache would take in whole "
                "sources, with what is left out"
            )

    def check_partial(self, sources: Collection[str]) -> None:
        """Raise CacheError if the condition does not keep all clips that these sources may have.

        Some of their clips waited when this cache was copied, and it knows nothing of them.
        """
        divided = set[str]()
        for shard, rows in self._planned_of(sources):
            kept = self._kept(shard, rows)
            of_any = self._kept(shard, _without(rows, ("key", "start")))
            is_kept = pc.and_(
                pc.is_in(rows["key"], value_set=_keys(kept)),
                pc.is_in(rows["source"], value_set=of_any["source"].combine_chunks()),
            )
            divided.update(rows.filter(pc.invert(is_kept))["source"].to_pylist())
        if divided:
            raise self._refusal(
                f"--where tells apart clips of sources that lack some: {some_of(sorted(divided))}. "
                "`precompute` on the new cache would take in whole sources, with what is left out"
            )

    def _planned_of(self, sources: Collection[str]) -> Iterator[tuple[ShardId, pa.Table]]:
        """Yield the planned rows of some sources by shard; none if there is no condition to decide."""
        if not sources or self._where is None:
            return
        names = pa.array(sorted(sources), pa.string())
        for shard in self._planned.planned_shards():
            rows = self._planned.plan.rows(shard)
            yield shard, rows.filter(pc.is_in(rows["source"], value_set=names))

    def _without_copies(self, shard: ShardId) -> pa.Table:
        """Return the rows of a missing shard, but for those that copy a row which counts until then."""
        plan, committed = self._planned.plan, self._cache.committed
        origins = plan.origins(shard).items()
        copies = [row for row, clip in origins if clip.shard in committed]
        rows = plan.rows(shard)
        return rows.filter(pc.invert(pc.is_in(rows["row"], value_set=pa.array(copies, pa.int32()))))

    def _kept(self, shard: ShardId, rows: pa.Table) -> pa.Table:
        """Return the rows of a shard that the condition keeps if they get ok."""
        if self._where is None or not rows.num_rows:
            return rows
        try:
            return self._as_ok(shard, rows).filter(to_expression(self._cache, self._where))
        except pa.ArrowException:
            raise self._refusal(
                "--where names what is known only of clips that are encoded, so it cannot be told which of "
                "those that are still to be encoded it keeps. Known before are key, source, bucket, "
                "height, width, caption, start, frames, fps, and columns kept from the corpus"
            ) from None

    def _as_ok(self, shard: ShardId, rows: pa.Table) -> pa.Table:
        """Return planned rows with what is known of what a sample table will say of those that get ok."""
        bucket = Bucket.parse(shard.bucket)
        facts = {"bucket": bucket.name, "height": bucket.height, "width": bucket.width}
        for name, value in {**facts, "status": "ok", "reason": None, "message": None}.items():
            column = pa.array([value] * rows.num_rows, SAMPLE_SCHEMA.field(name).type)
            rows = rows.append_column(name, column)
        return with_kept(rows, self._cache.column_names, self._cache.sample_schema)

    def _refusal(self, why: str) -> CacheError:
        url = redact(self._planned.storage.url)
        if not self._planned.missing_shards():
            return CacheError(
                f"{url} was copied from a cache that was not finished: {why}. Nothing was written. Take in "
                "first what it lacks: latentcache precompute CONFIG.yaml "
                f"{shlex.quote(f'cache.url={url}')}"
            )
        return CacheError(
            f"{url} is not finished: {why}. Nothing was written. Finish it first: latentcache resume "
            f"{shlex.quote(url)}"
        )


def _keys(rows: pa.Table) -> pa.Array:
    return rows["key"].combine_chunks()


def _without(rows: pa.Table, names: Collection[str]) -> pa.Table:
    """Return rows with nulls in some columns."""
    for name in names:
        nothing = pa.nulls(rows.num_rows, rows.schema.field(name).type)
        rows = rows.set_column(rows.column_names.index(name), name, nothing)
    return rows
