"""Ray's own metrics of a run, which each node's agent serves to Prometheus: `ray_latentcache_...`.

Nothing here can fail or slow a run: where Ray has no agent (it is of `ray[default]`), nobody collects them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from latentcache.core.records import ShardReport
from latentcache.running.events import STAGES, Died, Event, Progress, Retried

#: Of a stage of a shard: a demonstration's clips to an hour.
BOUNDARIES_S = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600]
_TAGS = ("bucket", "worker")


class WorkerMetrics:
    """What one worker has done, by bucket and worker."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._clips = Counter("latentcache_clips_total", "Clips that are stored.", _TAGS)
        self._failures = Counter(
            "latentcache_failed_clips_total", "Clips that failed.", (*_TAGS, "reason")
        )
        self._frames = Counter("latentcache_frames_total", "Pixel frames of stored clips.", _TAGS)
        self._bytes = Counter("latentcache_stored_bytes_total", "Compressed latents.", _TAGS)
        self._seconds = Counter(
            "latentcache_stage_seconds_total",
            "Seconds in each stage; decode is summed over processes.",
            (*_TAGS, "stage"),
        )
        # Its sum is rough: Ray passes on how many fell between two boundaries, and takes the middle.
        self._shard_seconds = Histogram(
            "latentcache_shard_stage_seconds",
            "How long shards took in each stage.",
            BOUNDARIES_S,
            (*_TAGS, "stage"),
        )

    def add(self, report: ShardReport) -> None:
        """Count a shard that this worker has committed."""
        if report.committed_before:
            return
        tags = {"bucket": report.bucket, "worker": self._worker}
        _count(self._clips, report.num_ok, tags)
        _count(self._frames, report.num_frames, tags)
        _count(self._bytes, report.stored_bytes, tags)
        for reason, count in report.reasons.items():
            _count(self._failures, count, {**tags, "reason": reason})
        for stage in STAGES:
            seconds, stage_tags = getattr(report, stage), {**tags, "stage": stage[: -len("_s")]}
            _count(self._seconds, seconds, stage_tags)
            self._shard_seconds.observe(seconds, stage_tags)


def _count(counter: Counter, number: float, tags: dict[str, str]) -> None:
    if number:  # Ray refuses to count nothing
        counter.inc(number, tags)


class RunMetrics:
    """What the driver sees of its run."""

    def __init__(self) -> None:
        self._workers = Gauge("latentcache_workers", "Workers that are up.")
        self._in_hand = Gauge("latentcache_shards_in_hand", "Shards that workers are working on.")
        self._done = Gauge("latentcache_clips_done", "Clips of this run, committed or not.")
        self._retries = Counter("latentcache_shard_retries_total", "Shards to be tried again.")
        self._deaths = Counter("latentcache_worker_deaths_total", "Workers that died.")

    def add(self, event: Event) -> None:
        """Take an event of the run in."""
        match event:
            case Progress():
                self._workers.set(event.workers)
                self._in_hand.set(event.shards_in_hand)
                self._done.set(event.clips_done)
            case Retried():
                self._retries.inc()
            case Died():
                self._deaths.inc()
