"""The driver's side of fields that are made along with latents: what workers are asked for, and gave."""

from __future__ import annotations

from collections.abc import Iterable

from latentcache.config.fields import FieldConfig, RawField, VisualField
from latentcache.config.sections import RunConfig
from latentcache.core.records import Shard, ShardId, ShardReport
from latentcache.format.manifest import Manifest
from latentcache.planning.fields.planned import PlannedField
from latentcache.running.events import Died, Event, GaveUp, Progress, Retried
from latentcache.running.failure_policy import Judge
from latentcache.running.field_snapshot import FieldSnapshot
from latentcache.running.one_decode import SharedField, SharedShard
from latentcache.running.summary import Summary

#: Each worker may die so often before fields are suspected of it.
DEATHS_PER_WORKER = 4


def can_share(config: FieldConfig, manifest: Manifest) -> bool:
    """Tell whether a field is made of the very pixels that the latents are encoded from."""
    if not isinstance(config, RawField | VisualField) or manifest.provenance.parent is not None:
        return False
    return config.column is None and getattr(config, "scale", None) is None


class SharedFields:
    """Fields that a run of latents makes along with them.

    A shard that failed is tried again without fields. Where workers die, more often than shards are
    done with fields, or most clips of a field fail, the rest is left to the fields' own runs.

    summaries: what was made, by field.
    """

    def __init__(self, fields: Iterable[PlannedField], run: RunConfig) -> None:
        self._fields = {planned.field.name: planned for planned in fields}
        self.summaries = {name: Summary() for name in self._fields}
        self._judges = {name: Judge(run) for name in self._fields}
        self._snapshots = {
            name: FieldSnapshot(planned, run.snapshot_interval_s, lambda _: None)
            for name, planned in self._fields.items()
        }
        self._left: set[str] = set()
        self._alone: set[ShardId] = set()
        self._num_done = self._num_deaths = 0
        self._num_workers = 1

    @property
    def for_workers(self) -> tuple[SharedField, ...]:
        """What workers need to know of the fields."""
        found = []
        for planned in self._fields.values():
            assert isinstance(planned.config, RawField | VisualField), "see can_share"
            found.append(SharedField(field=planned.field, settings=planned.config))
        return tuple(found)

    def publish(self) -> None:
        """Publish what is committed of the fields."""
        for snapshot in self._snapshots.values():
            snapshot.open()

    def with_parts(self, shard: Shard) -> Shard | SharedShard:
        """Return a task: a shard of latents, with what is missing of fields in it."""
        if shard.id in self._alone or self._are_suspected():
            return shard
        parts = {
            name: found
            for name, planned in self._fields.items()
            if name not in self._left and (found := planned.parts(shard.id))
        }
        return SharedShard(shard=shard, parts=parts) if parts else shard

    def _are_suspected(self) -> bool:
        allowed = min(self._num_done, DEATHS_PER_WORKER * self._num_workers)
        return self._num_deaths > allowed

    def take(self, event: Event) -> None:
        """Take in what a run tells of itself."""
        match event:
            case ShardReport():
                self._add(event)
            case Retried() | GaveUp():
                self._alone.add(event.task.shard)
            case Died() if event.name:  # it was up: no encoder of a field is loaded before
                self._num_deaths += 1
            case Progress():
                self._num_workers = max(self._num_workers, event.workers)

    def _add(self, report: ShardReport) -> None:
        self._num_done += bool(report.fields)
        for name, of_field in report.fields.items():
            self.summaries[name].add(of_field)
            self._snapshots[name].add(of_field)
            if not of_field.committed_before:
                self._judges[name].add_shard(of_field)
            if self._judges[name].too_many_clips_fail():
                self._left.add(name)
