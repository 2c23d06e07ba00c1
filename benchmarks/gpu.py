"""Encoders on this machine's GPU: only encoding, the whole pipeline from video files, and the loader.

The tests that need a GPU are run at the end.

`python benchmarks/gpu.py` prints tables; `--write` puts them into docs/benchmarks.md. It needs no weights
and no data: full-size models are made with random weights, and videos are written. Without a GPU it runs
the same steps with tiny models on the CPU, which shows that it works, and measures nothing.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the jobs set it; see jobs/__init__.py

import gc
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_loader
from benchmarks.machine import machine
from latentcache.config.sections import Config
from latentcache.core.machine import num_cpus
from latentcache.core.records import Shard, ShardId
from latentcache.encoders import resolve
from latentcache.encoders.difference import difference
from latentcache.errors import LatentCacheError
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import grow_cache
from latentcache.running.worker import SHARDS_IN_HAND, ShardWorker, WorkerSpec
from tests.tools.tiny_models import save
from tests.tools.videos import moving_pattern, write_video

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by `benchmarks/gpu.py --write`, from here -->", "<!-- to here -->"
#: By name: the kind, the class, what differs from the class's defaults, and frames of a clip.
FULL: Mapping[str, tuple[str, str, dict[str, Any], int]] = {
    "Wan 2.1": ("diffusers_video", "AutoencoderKLWan", {}, 17),
    "HunyuanVideo": ("diffusers_video", "AutoencoderKLHunyuanVideo", {}, 17),
    "LTX-Video": ("diffusers_video", "AutoencoderKLLTXVideo", {}, 17),
    "CogVideoX": (
        "diffusers_video",
        "AutoencoderKLCogVideoX",
        {"layers_per_block": 3, "sample_height": 480, "sample_width": 720},
        17,
    ),
    "SD (AutoencoderKL)": (
        "diffusers_image",
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        1,
    ),
}
#: By name: the kind, the model, what differs from it, and frames of a clip.
TINY: Mapping[str, tuple[str, str, dict[str, Any], int]] = {
    "tiny Wan 2.1": ("diffusers_video", "wan", {}, 5),
    "AutoencoderTiny": (
        "diffusers_image",
        "tiny",
        {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)},
        1,
    ),
}
#: The only tiny model that is compiled: for another one a C++ compiler works for minutes.
TINY_COMPILED = "AutoencoderTiny"
FULL_SIZES = ((256, 256), (480, 832), (720, 1280))
TINY_SIZES = ((32, 32),)
#: How an encoder is run, by name: keys of the section `encoder`.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "channels last": {"memory_format": "channels_last"},
    "compiled": {"compile": True},
}
#: Clips at once that are tried with the smallest size.
BATCHES, TINY_BATCHES = (1, 4, 16), (1, 2)
ROUNDS = 3
#: Worker processes that share the GPU, in the smallest size.
WORKERS, TINY_WORKERS = (1, 2, 3), (1, 2)
#: A worker that fails leaves the others waiting for so long.
READY_S = 300.0
#: What `pytest` runs at the end. Without a GPU, the tests that need one are skipped.
TESTS = ("tests/gpu", "tests/reading/loader/test_targets.py")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A saved model, how many frames a clip of it has, and what is tried with it."""

    name: str
    kind: str
    folder: Path
    frames: int
    ways: Sequence[str] = tuple(WAYS)
    batches: Sequence[int] = BATCHES
    workers: Sequence[int] = WORKERS


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Until when new cases are begun."""

    until: float

    def is_over(self) -> bool:
        """Tell whether there is no time for another case."""
        return time.monotonic() > self.until


def models(folder: Path, *, full: bool) -> Iterator[Model]:
    """Make the models one by one; each is in its own folder."""
    import diffusers

    for name, (kind, tiny, settings, frames) in {} if full else TINY.items():
        compiled = name == TINY_COMPILED
        yield Model(
            name=name,
            kind=kind,
            folder=save(tiny, folder / tiny, **settings),
            frames=frames,
            ways=[way for way in WAYS if compiled or way != "compiled"],
            batches=TINY_BATCHES,
            workers=TINY_WORKERS if compiled else (1,),
        )
    for name, (kind, class_name, settings, frames) in FULL.items() if full else ():
        torch.manual_seed(0)
        getattr(diffusers, class_name)(**settings).save_pretrained(str(folder / class_name))
        yield Model(name=name, kind=kind, folder=folder / class_name, frames=frames)


def section(model: Model, *, dtype: str, **keys: Any) -> dict[str, Any]:
    """The configuration's section `encoder`."""
    return {
        "kind": model.kind,
        "model": str(model.folder),
        "dtype": dtype,
        "store": "mean",
        **keys,
    }


def build(raw: Mapping[str, Any], device: torch.device) -> Any:
    """An encoder on its device."""
    module, config = resolve(raw)
    spec = module.describe(config, dtype="bfloat16")
    return module.build(config, spec=spec, device=device)


def encode_s(encoder: Any, pixels: torch.Tensor, device: torch.device) -> float:
    """Seconds of one batch, the median of some; the result is waited for."""
    times = []
    for _ in range(ROUNDS + 1):  # the first one warms up, and compiles
        started = time.perf_counter()
        encoder.encode(pixels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def bare(
    model: Model, sizes: Sequence[tuple[int, int]], dtype: str, device: torch.device, clock: Clock
) -> Iterator[list[str]]:
    """Rows of the first table: only encoding, in every way, and with more clips at once while they fit."""
    for way in model.ways:
        encoder = build(section(model, dtype=dtype, **WAYS[way]), device)
        for height, width in sizes:
            for batch in model.batches if (height, width) == sizes[0] else (1,):
                if clock.is_over():
                    yield [model.name, f"{height}x{width}", way, str(batch), *["no time"] * 3]
                    continue
                shape = (batch, model.frames, height, width, 3)
                yield [
                    model.name,
                    f"{height}x{width}",
                    way,
                    str(batch),
                    *_bare(encoder, shape, device),
                ]
        del encoder
        _free(device)


def _bare(encoder: Any, shape: tuple[int, ...], device: torch.device) -> list[str]:
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        taken_s = encode_s(encoder, pixels, device)
    except torch.OutOfMemoryError:
        _free(device)
        return ["no memory", "", ""]
    except LatentCacheError as error:
        return [str(error).partition(".")[0], "", ""]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    off = difference(encoder.spec, encoder.encode_plain(pixels[:1]), encoder.encode(pixels)[:1])
    frames = shape[0] * shape[1] / taken_s
    return [f"{frames:,.1f}", "" if peak is None else f"{peak:.1f}", f"{off or 0:.1g}"]


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def pipeline(
    model: Model,
    size: tuple[int, int],
    dtype: str,
    device: torch.device,
    num_videos: int,
    num_workers: int = 1,
) -> list[str]:
    """A row of the second table: `num_videos` for each worker, from files to a committed cache."""
    with tempfile.TemporaryDirectory(prefix="latentcache-") as folder:
        planned = _planned(model, size, dtype, Path(folder), num_videos, num_workers)
        spec = WorkerSpec(
            config=planned.config,
            manifest=planned.manifest,
            storage=planned.storage,
            num_cpus=max(1, num_cpus() // num_workers),
        )
        (bucket,) = planned.manifest.buckets
        shards = [planned.plan.shard(ShardId(bucket.name, n)) for n in range(bucket.num_shards)]
        shares = [shards[n::num_workers] for n in range(num_workers)]
        try:
            done = (
                _work_beside(spec, shares, device)
                if num_workers > 1
                else [_work(spec, shards, device, threading.Barrier(1))]
            )
        except (LatentCacheError, torch.OutOfMemoryError, threading.BrokenBarrierError) as error:
            why = str(error).partition(".")[0] or "a worker failed"
            return [model.name, f"{size[0]}x{size[1]}", str(num_workers), why, ""]
    wall_s = max(each.wall_s for each in done)
    frames, encode_s = sum(each.num_frames for each in done), sum(each.encode_s for each in done)
    busy = f"{min(1.0, encode_s / num_workers / wall_s):.0%}"
    return [model.name, f"{size[0]}x{size[1]}", str(num_workers), f"{frames / wall_s:,.1f}", busy]


def _planned(
    model: Model,
    size: tuple[int, int],
    dtype: str,
    folder: Path,
    num_videos: int,
    num_workers: int,
) -> PlannedCache:
    """Write videos, and plan a cache of them with four shards for each worker."""
    videos = folder / "videos"
    videos.mkdir()
    for n in range(num_videos * num_workers):
        write_video(videos / f"{n}.mp4", moving_pattern(model.frames, *size, seed=n), fps=8)
    config = Config.model_validate(
        {
            "corpus": {"source": str(videos)},
            "clips": {"frames": model.frames, "size": list(size)},
            "encoder": section(model, dtype=dtype, batch="auto"),
            "cache": {"url": f"{folder}/cache", "shard_clips": max(1, num_videos // 4)},
            "run": {"runner": "local"},
            "quality": {"every": 0},
        }
    )
    return grow_cache(config)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one worker did, how long it took, and how much of that it encoded."""

    wall_s: float
    num_frames: int
    encode_s: float


def _work(spec: WorkerSpec, shards: Sequence[Shard], device: torch.device, ready: Any) -> Done:
    """Encode one shard to warm up, wait for the others at the barrier `ready`, and encode the rest."""
    worker = ShardWorker(spec, device)
    try:
        worker.encode_shard(shards[0])
        ready.wait(READY_S)
        started = time.perf_counter()
        with ThreadPoolExecutor(SHARDS_IN_HAND) as pool:
            reports = list(pool.map(worker.encode_shard, shards[1:]))
        wall_s = time.perf_counter() - started
    finally:
        worker.close()
    frames, encode_s = (
        sum(getattr(r, name) for r in reports) for name in ("num_frames", "encode_s")
    )
    return Done(wall_s=wall_s, num_frames=frames, encode_s=encode_s)


def _work_beside(
    spec: WorkerSpec, shares: Sequence[Sequence[Shard]], device: torch.device
) -> list[Done]:
    """Run a process for each share: threads of one process would share a stream of the GPU."""
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used after a fork
    with context.Manager() as manager, ProcessPoolExecutor(len(shares), context) as pool:
        ready = manager.Barrier(len(shares))
        futures = [pool.submit(_work, spec, share, device, ready) for share in shares]
        return [future.result() for future in futures]


def run_tests() -> str:
    """Run the tests that need a GPU, and return the last line of what pytest says."""
    options = ["-o", "addopts=", "-q", "-rs", "-m", "long or not long"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    return (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(text: str, page: Path) -> None:
    """Put the tables between the page's markers. Raises ValueError if it has none."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r}, between which the tables go")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


def measure(device: torch.device, minutes: float) -> str:
    """Run all that there is time for; returns the tables."""
    full = device.type == "cuda"
    clock = Clock(until=time.monotonic() + minutes * 60)
    sizes, dtype = (FULL_SIZES, "bfloat16") if full else (TINY_SIZES, "float32")
    encoded: list[list[str]] = []
    piped: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="latentcache-") as folder:
        for model in models(Path(folder), full=full):
            for row in pipelines(model, sizes, dtype, device, clock):
                piped.append(row)
                print(" ".join(row), flush=True)
            for row in bare(model, sizes, dtype, device, clock):
                encoded.append(row)
                print(" ".join(row), flush=True)
    loaded = list(gpu_loader.rows(gpu_loader.FULL if full else gpu_loader.TINY, device))
    name = torch.cuda.get_device_name(device) if full else "no GPU: tiny models on the CPU"
    head = ["model", "size", "way", "clips at once", "frames/s", "peak GiB", "difference"]
    return "\n\n".join(
        [
            f"{name}; {machine()}; torch {torch.__version__}; {dtype}, random weights.",
            "Only encoding, pixels on the device:",
            table(head, encoded),
            "From video files to a committed cache, `batch: auto`:",
            table(["model", "size", "workers", "frames/s", "busy"], piped),
            "The loader, by itself and in front of a step, uncompressed bfloat16 from page cache:",
            table(gpu_loader.HEAD, loaded),
            f"Tests that need a GPU: {run_tests()}",
        ]
    )


def pipelines(
    model: Model, sizes: Sequence[tuple[int, int]], dtype: str, device: torch.device, clock: Clock
) -> Iterator[list[str]]:
    """Rows of the second table: one worker in each size, and several in the smallest."""
    num_videos = 64 if device.type == "cuda" else 8
    for size in sizes:
        for num_workers in model.workers if size == sizes[0] else (1,):
            if clock.is_over():
                yield [model.name, f"{size[0]}x{size[1]}", str(num_workers), "no time", ""]
            else:
                yield pipeline(model, size, dtype, device, num_videos, num_workers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="no case is begun after them")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--page", type=Path, default=DOCS, help="another page to write to")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.write and device.type != "cuda" and args.page == DOCS:
        parser.error(
            "there is no GPU here, and the page is for figures of one: give another --page"
        )
    text = measure(device, args.minutes)
    print(f"\n{text}")
    if args.write:
        write(text, args.page)


if __name__ == "__main__":
    main()
