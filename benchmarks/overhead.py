"""What the pipeline costs beside the work itself, as ratios within one run, alternating.

`python benchmarks/overhead.py decode`  the pipeline with a free encoder against only decord
`python benchmarks/overhead.py encode`  the pipeline with a heavy Wan VAE against only encoding
`python benchmarks/overhead.py others`  the same against a trainer's loop, and a plain script on Ray Data

`--videos FOLDER` gives your own clips; without it the benchmark makes some.
"""

from __future__ import annotations

import argparse
import importlib.util
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the jobs set it; see jobs/__init__.py

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import baselines
from benchmarks.machine import machine
from latentcache.config.sections import Config, QualityConfig
from latentcache.core.records import ShardId
from latentcache.format.paths import sample_path
from latentcache.format.shards import get_format
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import grow_cache
from latentcache.running.worker import SHARDS_IN_HAND, ShardWorker, WorkerSpec
from tests.tools.tiny_models import save_wan
from tests.tools.videos import moving_pattern, write_video

ROUNDS = 5


def alternate(
    one: Callable[[], float], other: Callable[[], float], rounds: int
) -> tuple[float, float, float]:
    """Run both in turn; returns the median of each, and the median of their ratios pair by pair."""
    one(), other()  # warm up
    pairs = [(one(), other()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def some_videos(folder: Path, given: str | None, count: int = 5) -> list[Path]:
    """The files to decode: the user's, or synthetic ones of 49 frames of 480x720."""
    if given:
        return sorted(Path(given).glob("*.mp4"))
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(count):
        pixels = moving_pattern(49, 480, 720, seed=index).astype(np.int16)
        pixels += noise.integers(-6, 7, pixels.shape, dtype=np.int16)
        write_video(folder / f"{index}.mp4", pixels.clip(0, 255).astype(np.uint8), fps=8)
    return sorted(folder.glob("*.mp4"))


def prepare(
    folder: Path, videos: list[Path], repeat: int, **changes: dict[str, object]
) -> PlannedCache:
    """Plan a cache of every video `repeat` times. An `encoder` among the changes replaces the other."""
    table = folder / "corpus.csv"
    table.write_text("video\n" + "\n".join(str(path) for path in videos * repeat) + "\n")
    raw: dict[str, dict[str, object]] = {
        "corpus": {"source": str(table)},
        "clips": {"frames": 49, "size": [480, 720]},
        "encoder": {"kind": "dct", "store": "mean"},
        "cache": {"url": str(folder / "cache"), "shard_clips": 8},
        "run": {"runner": "local", "decode_processes": 1},
    }
    if "encoder" in changes:
        raw["encoder"] = {}
    config = Config.model_validate({k: {**v, **changes.get(k, {})} for k, v in raw.items()})
    return grow_cache(config)


def worker_of(prepared: PlannedCache) -> ShardWorker:
    """A worker on the CPU, warmed up by nothing yet."""
    config = prepared.config.model_copy(update={"quality": QualityConfig(every=0)})
    spec = WorkerSpec(config=config, manifest=prepared.manifest, storage=prepared.storage)
    return ShardWorker(spec, torch.device("cpu"))


def encode_all(prepared: PlannedCache, worker: ShardWorker) -> float:
    """Encode and write every shard; returns pixel frames per second."""
    (bucket,) = prepared.manifest.buckets
    shards = [prepared.plan.shard(ShardId(bucket.name, i)) for i in range(bucket.num_shards)]
    layout = prepared.manifest.layouts()[bucket.name]
    shard_format = get_format(prepared.manifest.format)
    for shard in shards:  # a shard that an earlier run committed would be left as it is
        prepared.storage.delete(sample_path(bucket.name, shard.index))
        prepared.storage.delete(shard_format.path(layout, shard.index))
    started = time.perf_counter()
    with ThreadPoolExecutor(SHARDS_IN_HAND) as pool:
        frames = sum(report.num_frames for report in pool.map(worker.encode_shard, shards))
    return frames / (time.perf_counter() - started)


def decode_alone(videos: list[Path], repeat: int, *, batch: bool) -> float:
    """Decode only with decord, one thread; returns pixel frames per second."""
    started = time.perf_counter()
    frames = 0
    for path in videos * repeat:
        reader = decord.VideoReader(str(path), num_threads=1)
        if batch:
            frames += len(reader.get_batch(range(49)).asnumpy())
        else:
            frames += sum(1 for _ in range(49) if reader.next().asnumpy() is not None)
    return frames / (time.perf_counter() - started)


def bench_decode(folder: Path, args: argparse.Namespace) -> None:
    """Pipeline frames/s with `dct` against decord's, one decoding process or thread each."""
    videos = some_videos(folder / "videos", args.videos)
    repeat = max(1, 40 // len(videos))
    prepared = prepare(folder, videos, repeat)
    worker = worker_of(prepared)
    for name, batch in (("get_batch", True), ("next", False)):
        ours, decords, ratio = alternate(
            lambda: encode_all(prepared, worker),
            lambda batch=batch: decode_alone(videos, repeat, batch=batch),  # type: ignore[misc]
            args.rounds,
        )
        print(f"pipeline {ours:.0f} frames/s, decord {name} {decords:.0f} frames/s: {ratio:.2f}")
    worker.close()


def bench_encode(folder: Path, args: argparse.Namespace) -> None:
    """Wall time of the pipeline against only encoding, with a full-size Wan VAE of random weights."""
    videos = some_videos(folder / "videos", args.videos)[:3]
    model = save_wan(folder / "wan", base_dim=96, num_res_blocks=2, z_dim=16)
    encoder = {
        "kind": "diffusers_video",
        "model": str(model),
        "dtype": "float32",
        "store": "moments",
    }
    clips = {"frames": 5, "size": [128, 192]}
    prepared = prepare(folder, videos, 1, encoder=encoder, clips=clips)
    worker = worker_of(prepared)
    pixels = torch.randint(0, 256, (1, 5, 128, 192, 3), dtype=torch.uint8)

    def alone() -> float:
        started = time.perf_counter()
        for _ in videos:
            worker.encoder.encode(pixels)
        return time.perf_counter() - started

    def pipeline() -> float:
        return 5 * len(videos) / encode_all(prepared, worker)

    ours, encoding, ratio = alternate(pipeline, alone, args.rounds)
    print(f"pipeline {ours:.2f} s, only encoding {encoding:.2f} s: {ratio:.3f}")
    worker.close()


@dataclass(frozen=True, kw_only=True)
class Load:
    """Clips of a size, and the width and dtype of the Wan VAE that encodes them."""

    frames: int
    size: tuple[int, int]
    base_dim: int
    dtype: str
    repeat: int


#: What `others` compares: where decoding takes the most time, and where encoding does.
LOADS = {
    "mostly decoding": Load(frames=49, size=(64, 96), base_dim=4, dtype="float32", repeat=4),
    "mostly encoding": Load(frames=5, size=(256, 384), base_dim=32, dtype="bfloat16", repeat=1),
}


def bench_others(folder: Path, args: argparse.Namespace) -> None:
    """Wall time of the pipeline, from files to a cache, against two other ways on the same clips."""
    videos = some_videos(folder / "videos", args.videos)
    has_ray_data = importlib.util.find_spec("pandas") is not None
    if not has_ray_data:
        print("without Ray Data, which needs pandas: pip install pandas")
    for name, load in LOADS.items():
        print(f"\n{name}: {load.frames} frames of {load.size}, {load.dtype}")
        inside = folder / name.replace(" ", "-")
        inside.mkdir()
        _compare(inside, videos, load, args.rounds, has_ray_data=has_ray_data)


def _compare(
    folder: Path, videos: list[Path], load: Load, rounds: int, *, has_ray_data: bool
) -> None:
    model = save_wan(folder / "wan", base_dim=load.base_dim, num_res_blocks=2, z_dim=16)
    section = {"kind": "diffusers_video", "model": str(model), "dtype": load.dtype, "store": "mean"}
    clips: dict[str, object] = {"frames": load.frames, "size": list(load.size)}
    prepared = prepare(folder, videos, load.repeat, encoder=section, clips=clips)
    plain = {**section, "memory_format": "contiguous"}  # as models are where nobody asks for more
    worker, encoder = worker_of(prepared), baselines.build(plain)
    videos = videos * load.repeat
    num_frames, threads = load.frames * len(videos), torch.get_num_threads()
    cpu_s: list[tuple[float, float]] = []

    def pipeline() -> float:
        return num_frames / encode_all(prepared, worker)

    def loop() -> float:
        cpu_s.append(baselines.loop_s(encoder, videos, folder / "files", load.frames, load.size))
        return cpu_s[-1][0]

    def ray_data() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return baselines.ray_data_s(
                plain, videos, Path(out), load.frames, load.size, threads=threads
            )

    peers = {"a trainer's loop": loop}
    if has_ray_data:
        peers["Ray Data"] = ray_data
    for name, other in peers.items():
        theirs, ours, ratio = alternate(other, pipeline, rounds)
        print(f"pipeline {ours:.2f} s, {name} {theirs:.2f} s: {ratio:.2f} x the rate")
    worker.close()
    busy = statistics.median(cpu / wall for wall, cpu in cpu_s[1:])
    print(
        f"the loop keeps {busy:.2f} of {threads} cores busy: a program that did its work on all of them, "
        f"all the time, would have {threads / busy:.2f} x its rate"
    )


BENCHMARKS = {"decode": bench_decode, "encode": bench_encode, "others": bench_others}


def main() -> None:
    """Run the named benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=BENCHMARKS)
    parser.add_argument("--videos", help="folder of .mp4 files of 49 frames or more, 480x720")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each, in turn")
    args = parser.parse_args()
    print(machine())
    for name in args.names:
        with tempfile.TemporaryDirectory(prefix="latentcache-") as folder:
            print(f"{name}: ", end="", flush=True)
            BENCHMARKS[name](Path(folder), args)


if __name__ == "__main__":
    main()
