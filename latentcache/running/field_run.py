"""A run over a field's shards: as that of latents, with the field's own worker, commit and snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentcache.core.records import LASTING, RETIRED, ShardId, ShardReport
from latentcache.format.fields.commit import Sample, commit_field_shard, read_field_table
from latentcache.planning.fields.planned import PlannedField
from latentcache.running.driver import Run
from latentcache.running.events import Task
from latentcache.running.field_report import joined
from latentcache.running.field_snapshot import FieldSnapshot
from latentcache.running.field_worker import FieldSpec
from latentcache.running.publisher import Snapshot
from latentcache.running.summary import Summary
from latentcache.running.worker import WorkerSpec


class FieldRun(Run):
    """One run over the shards of a planned field. published: the field's snapshot that it left.

    made: what was made of it along with the latents, which the summary goes on from.
    """

    def __init__(self, planned: PlannedField, made: Summary | None = None) -> None:
        self._planned_field = planned
        super().__init__(planned.cache, list(planned.missing))
        self.summary = made or self.summary

    def _count_clips(self, missing: Sequence[ShardId]) -> int:
        return self._planned_field.num_clips(missing)

    def _open_snapshot(self) -> Snapshot:
        interval_s = self._planned.config.run.snapshot_interval_s
        return FieldSnapshot(self._planned_field, interval_s, self._log_snapshot)

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "field": self._planned_field.field.name}

    def _load_shard(self, shard: ShardId) -> Any:
        return self._planned_field.shard(shard)

    def _worker_spec(self) -> WorkerSpec:
        planned = self._planned_field
        return FieldSpec(
            config=planned.cache.config,
            manifest=planned.cache.manifest,
            storage=planned.storage,
            field=planned.field,
            settings=planned.config,
        )

    def _count_finished(self, report: ShardReport) -> None:
        """Count a shard. A clip that has no text is no failure of the encoder's: it is not judged."""
        super()._count_finished(report)
        num_lasting = sum(report.reasons.get(reason, 0) for reason in LASTING)
        if not report.committed_before:
            self._judge.num_failed -= num_lasting

    def _commit_failed(self, task: Task) -> ShardReport:
        planned, work = self._planned_field, self._planned_field.shard(task.shard)
        reports = []
        for part in work.parts:
            samples = []
            for row in part.rows:
                sample = Sample(key=work.shard.clips[row].key, row=row, choice=0)
                why = (str(RETIRED.reason), RETIRED.message)
                why = why if row in work.shard.retired else ("shard_failed", task.error)
                samples.append(sample.failed(*why))
            reports.append(
                commit_field_shard(
                    planned.storage,
                    planned.cache.manifest,
                    planned.field,
                    part.version,
                    task.shard,
                    samples,
                )
            )
        return joined(reports)

    def _judged_rows(self) -> list[dict[str, Any]]:
        planned, rows = self._planned_field, []
        for report in self._judged:
            shard = ShardId(report.bucket, report.shard)
            for version in planned.missing[shard]:
                table, _ = read_field_table(planned.storage, planned.field, version.number, shard)
                rows += [
                    {**row, "source": row["key"], "decoder": None, "source_height": None}
                    for row in table.to_pylist()
                    if row["reason"] not in LASTING
                ]
        return rows
