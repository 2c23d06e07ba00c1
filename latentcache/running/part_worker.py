"""The base of workers that make a field, part by part; what another run has committed is adopted."""

from __future__ import annotations

import abc
from dataclasses import replace

from latentcache.core.records import ShardReport
from latentcache.format.fields.commit import Sample, adopt_field_shard, commit_field_shard
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.field_report import joined
from latentcache.running.shards_in_hand import ShardsInHand, part_bytes
from latentcache.running.worker import WorkerSpec


class PartWorker(abc.ABC):
    """Makes a field; thread-safe. What its shards in hand hold is bounded."""

    def __init__(self, spec: WorkerSpec, field: FieldManifest) -> None:
        self._spec, self._field = spec, field
        self._in_hand = ShardsInHand()
        self.clips_done = 0

    @abc.abstractmethod
    def make_part(self, shard: FieldShard, part: FieldPart) -> tuple[list[Sample], float]:
        """Return the samples of a part's rows, and the seconds that encoding took; counts `clips_done`."""

    def encode_shard(self, shard: FieldShard) -> ShardReport:
        """Make and commit the missing versions of a shard; what another run has committed is adopted."""
        return joined([self._part(shard, part) for part in shard.parts])

    def _part(self, shard: FieldShard, part: FieldPart) -> ShardReport:
        manifest, storage, place = self._spec.manifest, self._spec.storage, shard.shard.id
        adopted = adopt_field_shard(storage, manifest, self._field, part.version, place)
        if adopted is not None:
            self.clips_done += len(part.rows)
            return adopted
        with self._in_hand.hold(part_bytes(self._field, manifest, shard.shard.bucket, part)):
            return self._committed(shard, part)

    def _committed(self, shard: FieldShard, part: FieldPart) -> ShardReport:
        manifest, storage, place = self._spec.manifest, self._spec.storage, shard.shard.id
        samples, encode_s = self.make_part(shard, part)
        report = commit_field_shard(storage, manifest, self._field, part.version, place, samples)
        return replace(report, encode_s=encode_s)
