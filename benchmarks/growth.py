"""Whether memory, file descriptors and threads grow with the length of a run or of a stream.

`python benchmarks/growth.py run --runner local`  a run over many small clips, process by process
`python benchmarks/growth.py run --runner ray`    the same with a Ray actor
`python benchmarks/growth.py stream`              a stream over many epochs

Each prints what it sees during the run, and at the end how much a process grew after the first quarter.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the jobs set it; see jobs/__init__.py

import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from latentcache.config.sections import Config
from latentcache.core.records import ShardReport
from latentcache.planning.planner import grow_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.running.driver import Run
from tests.tools.synthetic import write_cache
from tests.tools.videos import moving_pattern, write_video

CLIP_FRAMES = 5
CLIPS_A_VIDEO = 50
#: Parts of the command line by which a run's processes are known; Ray names an actor's after its class.
ROLES = {"actor": "ray::EncodeActor", "decoder": "latentcache.decoders.process"}
SAMPLES = 20


class Watch:
    """Samples of every process of a run: role -> [(work done, RSS in MiB, descriptors, threads)]."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._seen: dict[str, list[tuple[int, float, int, int]]] = {}

    def sample(self, done: int) -> None:
        gc.collect()
        for role, process in self._processes():
            facts = (process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())
            self._seen.setdefault(role, []).append((done, *facts))
            rss, fds, threads = facts
            print(
                f"{done:>7} {self._unit:<7}{role:<11}{rss:>9.1f} MiB{fds:>5} fds{threads:>5} threads",
                flush=True,
            )

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        driver = psutil.Process()
        yield "driver", driver
        found: dict[str, int] = {}
        for child in driver.children(recursive=True):
            command = " ".join(child.cmdline())
            for role, name in ROLES.items():
                if name in command:
                    found[role] = found.get(role, 0) + 1
                    yield f"{role} {found[role]}", child

    def print_growth(self) -> None:
        print(f"\nfrom a quarter of the way to the end ({machine()}):")
        for role, samples in self._seen.items():
            start, end = samples[len(samples) // 4], samples[-1]
            done = end[0] - start[0]
            rss, fds, threads = (b - a for a, b in zip(start[1:], end[1:], strict=True))
            per = f", {1024 * rss / done:.1f} KiB per {self._unit[:-1]}" if done else ""
            print(f"  {role:<11}{rss:+.1f} MiB{per}, {fds:+d} fds, {threads:+d} threads")


def make_videos(folder: Path, num_clips: int) -> Path:
    folder.mkdir()
    for index in range(-(-num_clips // CLIPS_A_VIDEO)):
        pixels = moving_pattern(CLIP_FRAMES * CLIPS_A_VIDEO, 64, 96, seed=index)
        write_video(folder / f"{index}.mp4", pixels)
    return folder


def watch_run(folder: Path, runner: str, num_clips: int) -> None:
    config = Config.model_validate(
        {
            "corpus": {"source": str(make_videos(folder / "videos", num_clips))},
            "clips": {"frames": CLIP_FRAMES, "select": "all", "size": [64, 96]},
            "encoder": {"kind": "dct", "store": "mean"},
            "cache": {"url": str(folder / "cache"), "shard_clips": 8},
            "run": {"runner": runner, "decode_processes": 1, "snapshot_interval_s": 5.0},
        }
    )
    prepared = grow_cache(config)
    watch = Watch("clips")
    run = Run(prepared, prepared.missing_shards())
    next_at = 0
    for event in run.events():
        done = run.summary.clips_ok
        if isinstance(event, ShardReport) and done >= next_at:
            watch.sample(done)
            next_at = done + prepared.manifest.num_clips // SAMPLES
    watch.print_growth()


def watch_stream(folder: Path, num_epochs: int, num_samples: int) -> None:
    write_cache(str(folder / "cache"), buckets={"17x256x256": num_samples})
    loader = LatentLoader(str(folder / "cache"), batch_size=8)
    watch = Watch("epochs")
    for epoch in range(num_epochs):
        for _ in loader:
            pass
        watch.sample(epoch + 1)
    watch.print_growth()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("run", "stream"))
    parser.add_argument("--runner", choices=("local", "ray"), default="local")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="latentcache-growth-") as folder:
        if args.what == "run":
            watch_run(Path(folder), args.runner, args.clips)
        else:
            watch_stream(Path(folder), args.epochs, args.samples)


if __name__ == "__main__":
    main()
