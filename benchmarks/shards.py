"""A cache of many shards: the driver's time a shard, and what opening it takes for each job.

    python benchmarks/shards.py [--shards 100000] [--folder /tmp/shards] [--profile driver]

Plans a table of sources of one clip and one shard each, and runs the real driver with a worker that only
reports: plan, log and snapshots are written as ever, and of each shard an empty object stands for its
sample table. Then each job's way to its first useful moment is timed. --profile: show where one spends it.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.grow import FRAMES, Made, write_corpus
from benchmarks.machine import machine
from benchmarks.million import memory
from latentcache.config.files import load_config
from latentcache.core.records import ShardReport
from latentcache.format.changes import read_changes
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import sample_path
from latentcache.format.snapshot import committed_places
from latentcache.inspecting.watch import Watch
from latentcache.planning import planner
from latentcache.planning.planned import PlannedCache, reopen_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.running.driver import Run
from latentcache.running.events import Event, Started
from latentcache.running.queue import LoadShard, WorkQueue
from latentcache.running.worker import WorkerSpec
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config

T = TypeVar("T")
#: What a shard of one clip of Wan 2.1 takes.
SHARD_BYTES = 2 << 20
RUNNER = "simulated"


class Simulated:
    """In the place of a runner: its worker takes no time. own_s, own_cpu_s: what it took for itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.own_s = self.own_cpu_s = 0.0

    def run(self, _: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> Iterator[Event]:
        """Report every shard as encoded."""
        yield Started(worker=0, name="simulated/worker0", gpus=())
        while (task := work.take(alone=True)) is not None:
            shard = load_shard(task.shard)
            started, cpu_started = time.perf_counter(), time.process_time()
            os.close(os.open(self._folder / sample_path(*task.shard), os.O_CREAT | os.O_WRONLY))
            report = ShardReport(
                bucket=task.shard.bucket,
                shard=task.shard.number,
                num_clips=len(shard.clips),
                num_ok=len(shard.clips),
                num_frames=FRAMES,
                stored_bytes=SHARD_BYTES,
                table_bytes=4096,
                raw_bytes=SHARD_BYTES,
                worker="simulated/worker0",
            )
            self.own_s += time.perf_counter() - started
            self.own_cpu_s += time.process_time() - cpu_started
            yield report


def plan(folder: Path, num_shards: int) -> PlannedCache:
    """Plan a shard for each row of a table."""
    video, table = folder / "video.mp4", folder / "corpus.parquet"
    video.write_bytes(b"not opened")
    write_corpus(table, video, num_shards, 0)
    names = ("video", "key", "frames", "fps", "height", "width", "caption")
    path = make_config(
        folder,
        table,
        str(folder / "cache"),
        corpus={"source": str(table), "columns": {name: name for name in names}},
        clips={"frames": FRAMES, "size": [480, 832], "select": "first"},
        cache={"shard_clips": 1},
    )
    with mock.patch.object(planner, "probing_pool", return_value=Made()):
        return planner.grow_cache(load_config(str(path)))


def drive(planned: PlannedCache, folder: Path) -> None:
    """Run the driver over all shards, and print its time for one, the simulated worker's left out."""
    for bucket in planned.manifest.buckets:
        (folder / sample_path(bucket.name, 0)).parent.mkdir(parents=True, exist_ok=True)
    simulated = Simulated(folder)
    run_config = planned.config.run.model_copy(update={"runner": RUNNER})
    config = planned.config.model_copy(update={"run": run_config})
    planned = PlannedCache(config=config, manifest=planned.manifest, storage=planned.storage)
    module = types.SimpleNamespace(run=simulated.run)
    with mock.patch.dict(sys.modules, {f"latentcache.running.runners.{RUNNER}": module}):
        started, cpu_started = time.perf_counter(), time.process_time()
        missing = planned.missing_shards()
        for _ in Run(planned, missing).events():
            pass
        wall_s = time.perf_counter() - started - simulated.own_s
        cpu_s = time.process_time() - cpu_started - simulated.own_cpu_s
    per_shard = [1000 * seconds / len(missing) for seconds in (wall_s, cpu_s)]
    print("          {:>9.2f} ms a shard, of the processor {:.2f} ms".format(*per_shard))


def open_for_verify(url: str) -> int:
    """Do what `verify` does before it reads the first shard's bytes."""
    storage = Storage(url)
    manifest = read_manifest(storage)
    there = committed_places(storage, manifest)
    return len(read_changes(storage, manifest).among(set(there)).retired_shards(manifest))


def timed(name: str, work: Callable[[], T], profiled: str) -> T:
    """Do some work, and print what it took."""
    profile = cProfile.Profile() if profiled == name else None
    started, cpu_started = time.perf_counter(), time.process_time()
    found = profile.runcall(work) if profile else work()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    print(f"{name:10}{wall_s:>9.2f} s, of the processor {cpu_s:.2f} s   {memory()}", flush=True)
    if profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    return found


def main() -> None:
    """Parse the command line, write a cache and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--folder", help="where to write (a temporary folder)")
    parser.add_argument("--profile", default="", help="what to profile: plan, driver, status, ...")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="latentcache-shards-"))
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "cache"
    print(f"{args.shards:,} shards of one clip ({machine()})")
    planned = timed("plan", lambda: plan(folder, args.shards), args.profile)
    timed("driver", lambda: drive(planned, cache), args.profile)
    url = str(cache)
    timed("status", lambda: Watch(Storage(url)).look(time.time()), args.profile)
    timed("resume", lambda: reopen_cache(url, {}).missing_shards(), args.profile)
    timed("verify", lambda: open_for_verify(url), args.profile)
    timed("loader", lambda: LatentLoader(url, batch_size=8), args.profile)
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
