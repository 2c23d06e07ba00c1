"""Which known sources are still to be read: of clips that wait or failed, and of fields that lack some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import differing
from latentcache.core.names import NameIndex
from latentcache.core.records import ShardId
from latentcache.errors import LatentCacheError
from latentcache.format.fields.manifest import FieldManifest, field_names, read_field
from latentcache.format.fields.snapshot import (
    missing_versions,
    newest_versions,
    read_field_index,
)
from latentcache.format.manifest import Manifest
from latentcache.format.samples import read_samples
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.format.snapshot import current_index
from latentcache.planning.known import KnownCache
from latentcache.planning.masks import Mask
from latentcache.planning.planned import PlannedCache
from latentcache.reading.column_history import ColumnHistory
from latentcache.reading.stale import FieldTexts, StaleRows
from latentcache.storage.folder import Storage

#: Kinds of fields that are made of other things than a clip's source.
NOT_OF_SOURCES = frozenset({"text", "array", "view", "given"})


@dataclass(frozen=True, kw_only=True)
class _ToRead:
    """Clips whose sources are to be read: of whole shards, or some rows of a shard.

    changed: columns that shards are about to get; read_with: those of them that are read with sources.
    """

    changed: Mapping[ShardId, pa.Table]
    whole: set[ShardId] = field(default_factory=set)
    rows: dict[ShardId, set[int]] = field(default_factory=lambda: defaultdict(set))
    read_with: set[str] = field(default_factory=set)

    def shards(self) -> set[ShardId]:
        """Return the shards that have such clips, or may have some."""
        return {*self.whole, *self.rows, *(self.changed if self.read_with else ())}

    def mask(self, shard: ShardId, clips: pa.Table) -> Mask:
        """Tell which clips of a shard these are. clips: those that count, with their columns as yet."""
        if shard in self.whole:
            return np.ones(clips.num_rows, bool)
        numbers = pa.array(sorted(self.rows.get(shard, ())), pa.int32())
        found = np.asarray(pc.is_in(clips["row"], value_set=numbers).to_numpy(), bool)
        if self.read_with and shard in self.changed:
            found |= self._changes(self.changed[shard], clips)
        return found

    def _changes(self, changed: pa.Table, clips: pa.Table) -> Mask:
        """Tell of which clips a column changes that is read with sources."""
        now = changed.take(pc.index_in(clips["row"], value_set=changed["row"].combine_chunks()))
        found = np.zeros(clips.num_rows, bool)
        for name in self.read_with:
            nulls = pa.chunked_array([pa.nulls(clips.num_rows)])
            columns = (t[name] if name in t.column_names else nulls for t in (clips, now))
            found |= differing(*columns)
        return found


def sources_to_read(
    planned: PlannedCache,
    known: KnownCache,
    names: pa.ChunkedArray,
    changed: Mapping[ShardId, pa.Table],
) -> Mask:
    """Return which of some sources have clips that the cache, or a field, still has to read.

    changed: captions and kept columns that shards are about to get: what fields make of them is made again.
    """
    found = np.zeros(len(names), bool)
    wanted = _ToRead(changed=changed)
    _add_clips(wanted, planned)
    _add_fields(wanted, planned)
    for group in known.looked_up(NameIndex(names), wanted.shards()):
        for shard, rows in group.slices():
            at = group.at[rows]
            at = at[wanted.mask(shard, group.rows.slice(rows.start, len(at)))]
            found[at[at >= 0]] = True
    return found


def _add_clips(wanted: _ToRead, planned: PlannedCache) -> None:
    """Add the clips that wait or failed."""
    wanted.whole.update(planned.missing_shards())
    failed = failed_rows(planned.storage, planned.manifest)
    columns = (failed[name].to_pylist() for name in ("bucket", "shard", "row"))
    for bucket, shard, row in zip(*columns, strict=True):
        wanted.rows[ShardId(bucket, shard)].add(row)


def _add_fields(wanted: _ToRead, planned: PlannedCache) -> None:
    """Add the clips of which some field is still to be made, or failed, of their sources."""
    there, history = field_names(planned.storage), ColumnHistory(planned.storage, planned.manifest)
    for name in there:
        with suppress(LatentCacheError):  # who makes the field says what is wrong with it
            made = read_field(planned.storage, name, planned.manifest)
            if made.kind not in NOT_OF_SOURCES:
                _add_field(wanted, planned, made, history)
    for name, settings in planned.config.fields.items():
        if name not in there and settings.get("kind") not in NOT_OF_SOURCES:
            wanted.whole.update(planned.planned_shards())


def _add_field(
    wanted: _ToRead, planned: PlannedCache, made: FieldManifest, history: ColumnHistory
) -> None:
    """Add the clips that a field lacks, that failed in it, or that it has of former columns."""
    if made.has_columns:
        wanted.read_with.update(FieldTexts(made).columns)
    shards = planned.planned_shards()
    wanted.whole.update(missing_versions(planned.storage, made, planned.manifest, shards))
    index = read_field_index(planned.storage, made)
    rows = index.filter(pc.greater(pc.list_value_length(index["failed"]), 0)).to_pylist()
    wanted.whole.update(ShardId(row["bucket"], row["shard"]) for row in rows)
    stale = StaleRows(made, newest_versions(made, index), history)
    for shard in stale.shards - wanted.whole:
        wanted.rows[shard].update(stale.of(shard))


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
