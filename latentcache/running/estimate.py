"""How long a run will take, and on what: a few clips of every bucket go through the real pipeline.

A worker, as runs have it, decodes, encodes and writes them into a temporary local folder: the cache's own
storage is not touched. What it took a clip is scaled by the plan's numbers of clips.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from latentcache.config.sections import Config, QualityConfig
from latentcache.core.devices import resolve_device
from latentcache.core.machine import num_cpus
from latentcache.core.records import Bucket, Shard, ShardReport
from latentcache.core.spec import LatentSpec
from latentcache.decoders.ahead import num_fetchers
from latentcache.planning.plan import Plan, to_shard
from latentcache.planning.recipe import make_manifest
from latentcache.planning.step import planned_by
from latentcache.running.cached_worker import CachedSpec
from latentcache.running.start import loaded
from latentcache.running.worker import SHARDS_IN_HAND, ShardWorker, Worker, WorkerSpec
from latentcache.storage.folder import Storage

#: Shards a bucket that are measured: one is written while the next is encoded.
SHARDS = 2
#: Places of a bucket, at least, that a sample is taken from. Measured on 112 clips of 15 real videos of all
#: kinds: 32 clips from 8 places have the mean bytes and decoding time of all to 3 %, from 4 to 23 %.
MIN_RUNS = 8


@dataclass(frozen=True, kw_only=True)
class BucketEstimate:
    """A bucket's clips, and the means of those that were measured; seconds and bytes a clip.

    decode_s: in one of `num_processes`. fetch_s: of remote sources, meanwhile. spine_s: of the encoder's
    thread, which encodes or waits.
    """

    name: str
    num_clips: int
    num_measured: int
    num_ok: int
    num_processes: int
    fetch_s: float
    decode_s: float
    encode_s: float
    write_s: float
    spine_s: float
    stored_bytes: float

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds a clip that each stage would take with the others for nothing."""
        return {
            "fetch": self.fetch_s / num_fetchers(self.num_processes),
            "decode": self.decode_s / self.num_processes,
            "encode": self.encode_s,
            "write": self.write_s / SHARDS_IN_HAND,
        }

    @property
    def limit(self) -> str:
        """The stage that the others wait for."""
        return max(self.stages, key=lambda stage: self.stages[stage])

    @property
    def clip_s(self) -> float:
        """Seconds a clip of a worker that goes on and on."""
        return max(self.spine_s, *self.stages.values())

    @property
    def total_s(self) -> float:
        """Seconds of one worker for the whole bucket."""
        return self.num_clips * self.clip_s

    @property
    def total_bytes(self) -> float:
        """Bytes that the bucket will take on storage."""
        return self.num_clips * self.stored_bytes


@dataclass(frozen=True, kw_only=True)
class Memory:
    """High-water marks in bytes: of the worker, of one decoding process, and of a GPU.

    gpu_bytes: what torch has reserved; gpu_tensor_bytes: what tensors took of that. num_gpus: of
    this machine.
    """

    worker_bytes: int
    decoder_bytes: int
    gpu_bytes: int | None
    gpu_total_bytes: int | None
    gpu_tensor_bytes: int | None = None
    num_gpus: int = 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What was measured of a run. start_s: building one worker, of which loading the model is most.

    compare_s: of a clip that the quality gate compares. shard_clips: of the real cache.
    """

    device: str
    buckets: Sequence[BucketEstimate]
    quality: QualityConfig
    shard_clips: int
    start_s: float
    compare_s: float
    memory: Memory

    @property
    def busy_s(self) -> float:
        """Seconds of all workers together, after they are up."""
        return sum(bucket.total_s for bucket in self.buckets) + self.compare_s * self._num_sampled

    @property
    def stored_bytes(self) -> float:
        """Bytes of all shard objects."""
        return sum(bucket.total_bytes for bucket in self.buckets)

    @property
    def _num_sampled(self) -> int:
        every = self.quality.every
        return sum(-(-bucket.num_clips // every) for bucket in self.buckets) if every else 0

    def wall_s(self, num_workers: int) -> float:
        """Seconds from the first worker's start to the end, the start itself left out.

        At both ends the stages do not overlap: the first clip is decoded, and the last shard is written.
        """
        first, last = self.buckets[0], self.buckets[-1]
        ends_s = first.decode_s + last.write_s * min(self.shard_clips, last.num_clips)
        compared = min(self.quality.judged_clips, self._num_sampled * self.quality.judged_clips)
        return self.busy_s / num_workers + ends_s + self.compare_s * compared

    def worker_hours(self, num_workers: int) -> float:
        """Hours that are paid for: every worker's, its start included."""
        return num_workers * (self.start_s + self.wall_s(num_workers)) / 3600


def measure(
    config: Config,
    plan: Plan,
    spec: LatentSpec,
    identity: Mapping[str, Any],
    *,
    num_clips: int,
    scale: float = 1.0,
    on_step: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Run a sample of every bucket: `num_clips` of them, evenly spread, after some to warm up.

    scale: how many times larger the corpus is than what was planned of it. on_step: is told in words
    what begins. Raises what a run would:
    EncoderError, RunStoppedError (of the quality gate), ConfigError.
    """
    device = resolve_device(config.run.device, "run.device")
    cpus = max(1, num_cpus() // _workers_here(config, device))
    shard_clips = max(1, -(-num_clips // SHARDS))
    sample = sample_plan(plan, shard_clips, cpus)
    with tempfile.TemporaryDirectory(prefix="latentcache-estimate-") as folder:
        cache = {"url": folder, "storage_options": {}, "shard_clips": shard_clips}
        small = config.model_copy(update={"cache": config.cache.model_copy(update=cache)})
        manifest = planned_by(make_manifest(small, spec, identity), sample)
        spec_class = CachedSpec if manifest.provenance.parent else WorkerSpec
        worker_spec = spec_class(
            config=small,
            manifest=manifest,
            storage=Storage(folder),
            num_cpus=cpus,
        )
        on_step("loading the model")
        started = time.perf_counter()
        worker = loaded(partial(worker_spec.build, device), config.run)
        start_s = time.perf_counter() - started
        on_step(f"encoding {sample.num_clips} clips of {len(sample.buckets)} buckets")
        try:
            reports = _run(worker, sample, shard_clips)
        finally:
            worker.close()
    num_processes = config.run.num_decode_processes(cpus)
    return Estimate(
        device=str(device),
        buckets=_summarise(plan, reports, num_processes, scale),
        quality=config.quality,
        shard_clips=config.cache.shard_clips_of(plan.num_clips, config.run.workers),
        start_s=start_s,
        compare_s=_compare_s(worker),
        memory=_memory(device),
    )


def _compare_s(worker: Worker) -> float:
    """Return what comparing one clip with its source took; 0 if none was compared."""
    if not isinstance(worker, ShardWorker):
        return 0.0
    return worker.gate.busy_s / max(1, worker.gate.num_compared)


def sample_plan(plan: Plan, shard_clips: int, num_warm: int) -> Plan:
    """Return SHARDS shards of every bucket, evenly spread over its rows, and a shorter one to warm up.

    Small buckets give some clips more than once. The first bucket has up to `num_warm` clips to warm up,
    a clip for each decoding process, and the others one.
    """
    buckets: dict[Bucket, pa.Table] = {}
    for bucket, table in sorted(plan.buckets.items()):
        warm = 1 if buckets else min(num_warm, shard_clips)
        spread = _spread(table["source"], SHARDS * shard_clips)
        buckets[bucket] = table.take(pa.array(np.concatenate([spread, spread[:warm]])))
    return Plan(buckets=buckets, rejected=plan.rejected.slice(0, 0))


def _spread(sources: pa.ChunkedArray, number: int) -> npt.NDArray[np.int64]:
    """Return `number` rows of a bucket: runs of neighbours, evenly spread.

    The next clip of a source that is open is cheaper to decode than the first one of another, so a sample
    goes from source to source about as often as the whole bucket does.
    """
    rows = len(sources)
    num_runs = min(number, max(MIN_RUNS, round(number * len(sources.unique()) / rows)))
    runs = np.array_split(np.arange(number), num_runs)
    starts = np.linspace(0, max(0, rows - len(runs[-1])), num_runs).round().astype(np.int64)
    places = [start + np.arange(len(run)) for start, run in zip(starts, runs, strict=True)]
    return np.concatenate(places) % rows


def _run(worker: Worker, sample: Plan, shard_clips: int) -> list[ShardReport]:
    """Warm up, then encode every shard as a runner does; returns the reports of the latter."""

    def shards(indices: Iterable[int]) -> list[Shard]:
        return [
            to_shard(table.slice(index * shard_clips, shard_clips), bucket, index)
            for bucket, table in sample.buckets.items()
            for index in indices
        ]

    for shard in shards([SHARDS]):
        worker.encode_shard(shard)
    with ThreadPoolExecutor(SHARDS_IN_HAND, thread_name_prefix="shard") as pool:
        return list(pool.map(worker.encode_shard, shards(range(SHARDS))))


def _summarise(
    plan: Plan, reports: Sequence[ShardReport], num_processes: int, scale: float
) -> list[BucketEstimate]:
    estimates: list[BucketEstimate] = []
    for bucket, table in sorted(plan.buckets.items()):
        own = [report for report in reports if report.bucket == bucket.name]
        number = sum(report.num_clips for report in own)
        fetch_s, decode_s, encode_s, write_s, wait_s, stored = (
            sum(getattr(report, name) for report in own) / number
            for name in ("fetch_s", "decode_s", "encode_s", "write_s", "wait_s", "stored_bytes")
        )
        # The first clip of all is waited for in any case: a long run does that once.
        filling_s = 0.0 if estimates else min(wait_s, (fetch_s + decode_s) / number)
        estimates.append(
            BucketEstimate(
                name=bucket.name,
                num_clips=round(table.num_rows * scale),
                num_measured=number,
                num_ok=sum(report.num_ok for report in own),
                num_processes=num_processes,
                fetch_s=fetch_s,
                decode_s=decode_s,
                encode_s=encode_s,
                write_s=write_s,
                spine_s=encode_s + wait_s - filling_s,
                stored_bytes=stored,
            )
        )
    return estimates


def _workers_here(config: Config, device: torch.device) -> int:
    """Return how many workers will share this machine's CPUs."""
    if device.type == "cuda":
        per_gpu = config.run.workers_per_gpu
        return torch.cuda.device_count() * (1 if per_gpu == "auto" else per_gpu)
    return 1 if config.run.workers == "auto" else config.run.workers


def _memory(device: torch.device) -> Memory:
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (
        resource.getrusage(who).ru_maxrss * unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    is_gpu = device.type == "cuda"
    return Memory(
        worker_bytes=own,
        decoder_bytes=children,
        gpu_bytes=torch.cuda.max_memory_reserved() if is_gpu else None,
        gpu_total_bytes=torch.cuda.mem_get_info()[1] if is_gpu else None,
        gpu_tensor_bytes=torch.cuda.max_memory_allocated() if is_gpu else None,
        num_gpus=max(1, torch.cuda.device_count()),
    )
