"""The driver: runs what is missing, records what gave up, and publishes the snapshot as it goes."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pyarrow as pa

from latentcache.commit import commit_failed_shard
from latentcache.errors import CacheError
from latentcache.index import build_index, publish, read_index
from latentcache.pipeline import WorkerSpec
from latentcache.prepare import Prepared, ShardLoader
from latentcache.records import ShardReport
from latentcache.runners.work import Event, GaveUp, Progress, Retried, Started, Task, WorkQueue
from latentcache.tables import INDEX_SCHEMA, sample_path


@dataclass
class Summary:
    """What a run did. Times as in ShardReport, summed over shards.

    start_s: until the first worker was up; wall_s: from then to the end.
    """

    shards: int = 0
    shards_failed: int = 0
    retries: int = 0
    workers: int = 0
    clips_ok: int = 0
    clips_failed: int = 0
    frames: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    decode_s: float = 0.0
    encode_s: float = 0.0
    wait_s: float = 0.0
    write_s: float = 0.0
    start_s: float = 0.0
    wall_s: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    shard_errors: dict[str, str] = field(default_factory=dict)
    tiling_errors: list[float] = field(default_factory=list)

    def add(self, report: ShardReport) -> None:
        """Count a finished shard."""
        self.shards += 1
        self.clips_ok += report.num_ok
        self.clips_failed += report.num_clips - report.num_ok
        self.frames += report.num_frames
        self.stored_bytes += report.stored_bytes
        self.raw_bytes += report.raw_bytes
        self.decode_s += report.decode_s
        self.encode_s += report.encode_s
        self.wait_s += report.wait_s
        self.write_s += report.write_s
        self.reasons.update(report.reasons)
        self.failures.extend(report.failures)
        self.tiling_errors.extend(report.tiling_errors)


class Run:
    """One run over the shards of a planned cache. published: the snapshot that it left."""

    def __init__(self, prepared: Prepared, tasks: Sequence[Task]) -> None:
        self.summary = Summary()
        self.published = INDEX_SCHEMA.empty_table()
        self._started = 0.0
        self._prepared = prepared
        self._tasks = tasks
        self._snapshot = _Snapshot(prepared, tasks)
        self._loader = ShardLoader(prepared.storage, prepared.manifest)

    def events(self) -> Generator[Event, None, None]:
        """Run, yielding events as they come; the snapshot is published as it goes and at the end.

        Closing the iterator (or an interrupt inside it) stops the workers; shards in flight are lost,
        committed ones are in the snapshot.
        """
        self._started = time.perf_counter()
        try:
            if self._tasks:
                yield from self._encode()
        finally:
            self.summary.wall_s = time.perf_counter() - self._started - self.summary.start_s
            self.published = self._snapshot.publish_all()

    def _encode(self) -> Generator[Event, None, None]:
        config = self._prepared.config
        runner = importlib.import_module(f"latentcache.runners.{config.run.runner}")
        work = WorkQueue(self._tasks, max_retries=config.run.max_retries)
        with closing(runner.run(self._worker_spec(), work, self._loader)) as events:
            for event in events:
                yield self._count(event)

    def _worker_spec(self) -> WorkerSpec:
        config = self._prepared.config
        return WorkerSpec(
            manifest=self._prepared.manifest,
            storage=self._prepared.storage,
            run=config.run,
            encoder=config.encoder,
            interpolation=config.clips.interpolation,
            kept=self._prepared.kept,
            corpus_options=config.corpus.storage_options,
        )

    def _count(self, event: Event) -> Event:
        if isinstance(event, GaveUp):
            self.summary.shards_failed += 1
            self.summary.shard_errors[event.task.name] = event.task.error
            event = self._record_failed(event)
        if isinstance(event, ShardReport):
            self.summary.add(event)
            self._snapshot.add(event)
        elif isinstance(event, Started) and not self.summary.workers:
            self.summary.start_s = time.perf_counter() - self._started
            self.summary.workers = 1
        elif isinstance(event, Retried):
            self.summary.retries += 1
        elif isinstance(event, Progress):
            self.summary.workers = max(self.summary.workers, event.workers)
        return event

    def _record_failed(self, gave_up: GaveUp) -> Event:
        """Commit the shard as failed; one that was committed before stays as it was."""
        task, storage = gave_up.task, self._prepared.storage
        if task.retry_failed and storage.exists(sample_path(task.bucket, task.index)):
            return gave_up
        layout = self._prepared.manifest.layouts()[task.bucket]
        shard = self._loader(task)
        return commit_failed_shard(storage, layout, shard, task.error, self._prepared.kept)


class _Snapshot:
    """The snapshot of a run: what was committed before, and what has been since."""

    def __init__(self, prepared: Prepared, tasks: Sequence[Task]) -> None:
        self._storage = prepared.storage
        self._interval_s = prepared.config.run.snapshot_interval_s
        self._published = time.monotonic()
        again = {(task.bucket, task.index) for task in tasks}
        rows = [
            row
            for row in _known(prepared).to_pylist()
            if (row["bucket"], row["shard"]) not in again
        ]
        self._rows = rows
        if any(task.retry_failed for task in tasks):
            self._publish()  # from now on nobody reads a shard that is about to be replaced

    def add(self, report: ShardReport) -> None:
        """Add a committed shard; publishes now and then."""
        names = ("bucket", "shard", "num_clips", "num_ok", "stored_bytes")
        self._rows.append({name: getattr(report, name) for name in names})
        if time.monotonic() - self._published > self._interval_s:
            self._publish()

    def publish_all(self) -> pa.Table:
        """Publish everything that is committed, by this run or by another, and return it."""
        table = build_index(self._storage, self._table())
        publish(self._storage, table)
        return table

    def _table(self) -> pa.Table:
        rows = sorted(self._rows, key=lambda row: (row["bucket"], row["shard"]))
        return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)

    def _publish(self) -> None:
        publish(self._storage, self._table())
        self._published = time.monotonic()


def _known(prepared: Prepared) -> pa.Table:
    try:
        return read_index(prepared.storage)
    except CacheError:  # none yet, or damaged: it is written anew
        return INDEX_SCHEMA.empty_table()
