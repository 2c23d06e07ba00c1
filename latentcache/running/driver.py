"""The driver: runs what is missing, records what gave up, and publishes the snapshot as it goes."""

from __future__ import annotations

import importlib
import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from typing import Any

from latentcache.config.sections import RunConfig
from latentcache.core.devices import resolve_device
from latentcache.core.image_quality import psnr_quantiles
from latentcache.core.records import ShardId, ShardReport
from latentcache.errors import LatentCacheError, RunStoppedError
from latentcache.format.commit import commit_failed_shard
from latentcache.format.paths import sample_path
from latentcache.format.schemas import INDEX_SCHEMA, SAMPLE_SCHEMA
from latentcache.format.shards import get_format
from latentcache.format.tables import read_table
from latentcache.planning.planned import PlannedCache
from latentcache.running.cached_worker import CachedSpec
from latentcache.running.events import Event, GaveUp, Progress, Retried, Started, Task
from latentcache.running.failure_policy import Judge, describe_clips, describe_errors
from latentcache.running.log import RunLog
from latentcache.running.log_lines import KERNELS, QUALITY, SNAPSHOT_PUBLISHED
from latentcache.running.one_decode import SharedSpec
from latentcache.running.publisher import RunSnapshot, Snapshot
from latentcache.running.queue import WorkQueue
from latentcache.running.ray_address import address_of, check_ray_address
from latentcache.running.scalars import scalars_of
from latentcache.running.shared_fields import SharedFields
from latentcache.running.summary import Summary
from latentcache.running.worker import SHARDS_IN_HAND, WorkerSpec

#: Sample tables, the last ones, that are read to say why so much failed.
EXPLAINED_SHARDS = 64


class Run:
    """One run over the shards of a planned cache. published: the snapshot that it left.

    shared: fields that are made along with the latents.
    """

    def __init__(
        self,
        planned: PlannedCache,
        missing: Sequence[ShardId],
        shared: SharedFields | None = None,
    ) -> None:
        config = planned.config.run
        tasks = [Task(shard=shard) for shard in missing]
        self.summary = Summary()
        self.published = INDEX_SCHEMA.empty_table()
        self._started = 0.0
        self._planned = planned
        self._shared = shared or SharedFields([], config)
        self._work = WorkQueue(tasks, max_retries=config.max_retries)
        self._num_clips = self._count_clips(missing)
        self._judge = Judge(config)
        self._judged: deque[ShardReport] = deque(maxlen=EXPLAINED_SHARDS)
        self._given_up: deque[GaveUp] = deque()
        self._log = RunLog(planned.storage, _options(planned))
        self._snapshot = self._open_snapshot()

    def _count_clips(self, missing: Sequence[ShardId]) -> int:
        return self._planned.num_clips(missing)

    def _open_snapshot(self) -> Snapshot:
        return RunSnapshot(
            self._planned.storage,
            self._planned.manifest,
            self._planned.config.run.snapshot_interval_s,
            self._log_snapshot,
        )

    def _log_snapshot(self, num_shards: int) -> None:
        self._log.add(SNAPSHOT_PUBLISHED, num_shards=num_shards)

    def events(self) -> Generator[Event, None, None]:
        """Run, yielding events as they come; the snapshot is published as it goes and at the end.

        Closing the iterator (or an interrupt inside it) stops the workers; shards in flight are lost,
        committed ones are in the snapshot. Raises StorageError where the cache's storage refuses, and
        RunStoppedError where nearly everything fails, or latents do not decode to their sources.
        """
        with self._log.run(**self._facts()) if self._work else nullcontext():
            yield from self._events()

    def _events(self) -> Iterator[Event]:
        self._started = time.perf_counter()
        self._snapshot.open()
        self._shared.publish()
        try:
            if self._work:
                yield from self._encode()
        except BaseException:
            with suppress(LatentCacheError):  # of two errors the first says what is wrong
                self._snapshot.close()
                self._shared.publish()
            raise
        finally:
            self.summary.wall_s = time.perf_counter() - self._started - self.summary.start_s
            self._log_quality()
        self.published = self._snapshot.close()

    def _log_quality(self) -> None:
        """Log how close the compared clips came; of an infinite PSNR, for there was no difference, null."""
        if psnrs_db := self.summary.psnrs_db:
            found = psnr_quantiles(psnrs_db).items()
            psnr_db = {name: value if math.isfinite(value) else None for name, value in found}
            self._log.add(QUALITY, num_clips=len(psnrs_db), psnr_db=psnr_db)
        if errors := self.summary.kernel_errors:
            facts = {"mean": sum(errors) / len(errors), "largest": max(errors)}
            self._log.add(KERNELS, num_clips=len(errors), **facts)

    def _facts(self) -> dict[str, Any]:
        """Return what the log says of the run itself."""
        manifest = self._planned.manifest
        return {
            "fingerprint": manifest.fingerprint,
            "num_shards": len(self._work),
            "num_clips": self._num_clips,
            "config": self._planned.config.without_secrets(),
        }

    def _encode(self) -> Iterator[Event]:
        config = self._planned.config
        runner = importlib.import_module(f"latentcache.running.runners.{config.run.runner}")
        self._work.jump()
        with (
            scalars_of(config.run, self._log.name) as scalars,
            closing(runner.run(self._worker_spec(), self._work, self._load_shard)) as events,
        ):
            for event in events:
                self._log.take(event)
                scalars.take(event)
                if isinstance(event, GaveUp):
                    self._give_up(event)
                else:
                    yield self._count(event)
                self._check()
                if self._judge.may_blame_shards():
                    yield from self._record_given_up()
            yield from self._record_given_up()

    def _give_up(self, event: GaveUp) -> None:
        """Count a shard's last failure; it is recorded when it is known that not just everything fails."""
        self._shared.take(event)
        self._judge.add_error(event.task.error)
        self._given_up.append(event)

    def _record_given_up(self) -> Iterator[Event]:
        while self._given_up:
            yield self._record(self._given_up.popleft())
            self._check()

    def _record(self, event: GaveUp) -> Event:
        task = event.task
        report = self._record_failed(task)
        self.summary.add_given_up(task.shard.name, task.error, report)
        return report or event

    def _load_shard(self, shard: ShardId) -> Any:
        return self._shared.with_parts(self._planned.plan.shard(shard))

    def _worker_spec(self) -> WorkerSpec:
        planned = self._planned
        facts: dict[str, Any] = {
            "config": planned.config,
            "manifest": planned.manifest,
            "storage": planned.storage,
        }
        if fields := self._shared.for_workers:
            return SharedSpec(**facts, fields=fields)
        return CachedSpec(**facts) if planned.manifest.provenance.parent else WorkerSpec(**facts)

    def _count(self, event: Event) -> Event:
        self._shared.take(event)
        if isinstance(event, Retried):
            self._judge.add_error(event.task.error)
            self.summary.retries += 1
        elif isinstance(event, ShardReport):
            self._count_finished(event)
        elif isinstance(event, Started) and not self.summary.workers:
            self.summary.start_s = time.perf_counter() - self._started
            self.summary.workers = 1
        elif isinstance(event, Progress):
            self.summary.workers = max(self.summary.workers, event.workers)
        return event

    def _count_finished(self, report: ShardReport) -> None:
        self.summary.add(report)
        self._snapshot.add(report)
        if report.committed_before:
            self._work.jump()
        else:
            self._judge.add_shard(report)
            self._judged.append(report)

    def _record_failed(self, task: Task) -> ShardReport | None:
        """Commit the shard as failed; one that is committed, before or by another run, stays as it is."""
        report = self._commit_failed(task)
        self._snapshot.add(report)
        if report.committed_before:
            return None
        self._log.take(report)
        self._judge.add_clips(report)
        return report

    def _commit_failed(self, task: Task) -> ShardReport:
        shard, manifest = self._planned.plan.shard(task.shard), self._planned.manifest
        return commit_failed_shard(
            self._planned.storage,
            get_format(manifest.format),
            manifest.layouts()[shard.bucket.name],
            shard,
            task.error,
            manifest.fingerprint,
        )

    def _check(self) -> None:
        """Raise RunStoppedError where the run is hopeless."""
        judge, allowed = self._judge, self._planned.config.run.max_failed_fraction
        if judge.too_many_clips_fail():
            raise RunStoppedError(
                f"{judge.num_failed} of the latest {judge.num_clips} clips failed, and "
                f"run.max_failed_fraction is {allowed:g}, so the run was stopped.\n"
                + "\n".join(describe_clips(self._judged_rows()))
                + "\nWhen that is fixed, resume with --retry-failed, which encodes them again. To go "
                "on in spite of it, resume with run.max_failed_fraction=1."
            )
        if judge.nothing_can_be_encoded(SHARDS_IN_HAND * max(1, self.summary.workers)):
            raise RunStoppedError(
                f"shards failed as a whole, {judge.errors.total()} times, and none could be encoded, so "
                "the run was stopped; none was recorded as failed.\n"
                + "\n".join(describe_errors(judge.errors))
                + "\nWhen that is fixed, resume. To try every shard in spite of it, resume with "
                "run.max_failed_fraction=1."
            )

    def _judged_rows(self) -> list[dict[str, Any]]:
        storage = self._planned.storage
        paths = [sample_path(report.bucket, report.shard) for report in self._judged]
        tables = (read_table(storage, path, list(SAMPLE_SCHEMA.names)) for path in paths)
        return [row for table in tables for row in table.to_pylist()]


def check_device(run: RunConfig) -> None:
    """Raise ConfigError where this machine lacks the device that workers on it need, or no cluster answers.

    Workers find that out themselves, and on a cluster only they can; here it is found before hours of
    probing.
    """
    check_ray_address(run)
    if address_of(run) is None:
        resolve_device(run.device, "run.device")


def _options(planned: PlannedCache) -> dict[str, Any]:
    """Return all storage options, whose secrets a log must not hold."""
    config = planned.config
    return {"cache": config.cache.storage_options, "corpus": config.corpus.storage_options}
