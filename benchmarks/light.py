"""Light encoders, with which decoding and encoding take about as long, and images in batches.

For each case, alternating in one run: decoding every clip and encoding as many, side by side without a
pipeline between them, against the pipeline, which also compresses and writes. Then the pipeline with
`encoder.batch: auto` against that with 1. The weights are random; nothing is downloaded.

`python benchmarks/light.py --videos FOLDER` takes your own clips; without it the benchmark makes some.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the jobs set it; see jobs/__init__.py

import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from benchmarks.overhead import alternate, encode_all, prepare, some_videos, worker_of
from latentcache.core.records import Clip, ShardId
from latentcache.encoders import plain
from latentcache.encoders.batching import batching_of
from latentcache.encoders.native import taehv, taesd
from latentcache.planning.planned import PlannedCache
from latentcache.running.worker import ShardWorker
from tests.tools import golden
from tests.tools.tiny_models import save
from tests.tools.videos import moving_pattern

#: DC-AE f32c32 as SANA uses it.
DC: Mapping[str, Any] = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
}
#: Clips of a round.
NUM_VIDEOS, NUM_IMAGES, NUM_HEAVY = 5, 32, 8
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """An encoder, and the clips that it is given: `num` of `frames` frames."""

    name: str
    encoder: Mapping[str, Any]
    frames: int
    size: tuple[int, int]
    sources: Sequence[Path]
    num: int

    def planned(self, folder: Path, batch: int | str) -> PlannedCache:
        """Plan a cache of the case."""
        folder.mkdir()
        return prepare(
            folder,
            list(self.sources),
            self.num // len(self.sources),
            clips={"frames": self.frames, "size": list(self.size)},
            encoder={**self.encoder, "batch": batch},
            cache={"shard_clips": max(8, self.num // 4)},
        )


def cases(folder: Path, given: str | None) -> Iterator[Case]:
    """Make the models and sources of the cases, one by one."""
    videos, images = some_videos(folder / "videos", given), some_images(folder / "images")
    checkpoint = golden.save(taehv.VARIANTS["taew2_1"].empty_model(), folder / "taew2_1.pth")
    tiny = golden.save(taesd.VARIANTS["taesd"].empty_encoder(), folder / "taesd_encoder.pth")
    dc_ae = save("dc", folder / "dc", **DC)
    yield Case(
        name="TAEHV, clips of 20 frames of 256x384",
        encoder={"kind": "taehv", "checkpoint": str(checkpoint), "dtype": "float32"},
        frames=20,
        size=(256, 384),
        sources=videos,
        num=NUM_VIDEOS,
    )
    yield Case(
        name="TAESD, images of 256x256",
        encoder={"kind": "taesd", "encoder": str(tiny), "dtype": "float32"},
        frames=1,
        size=(256, 256),
        sources=images,
        num=NUM_IMAGES,
    )
    yield Case(
        name="DC-AE f32c32, images of 256x256",
        encoder={
            "kind": "diffusers_image",
            "model": str(dc_ae),
            "store": "mean",
            "dtype": "float32",
        },
        frames=1,
        size=(256, 256),
        sources=images[:8],
        num=NUM_HEAVY,
    )


def some_images(folder: Path, count: int = 32) -> list[Path]:
    """Write JPEGs of 768x768."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index, pixels in enumerate(moving_pattern(count, 768, 768).astype(np.int16)):
        pixels += noise.integers(-6, 7, pixels.shape, dtype=np.int16)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{index:02d}.jpg", quality=92)
    return sorted(folder.glob("*.jpg"))


class Apart:
    """Decoding and encoding of a planned cache's clips, without anything between them."""

    def __init__(self, prepared: PlannedCache, worker: ShardWorker) -> None:
        (info,) = prepared.manifest.buckets
        shards = [prepared.plan.shard(ShardId(info.name, i)) for i in range(info.num_shards)]
        bucket = shards[0].bucket
        self._clips = [clip for shard in shards for clip in shard.clips]
        self._at_once = batching_of(prepared.config.encoder).clips_at_once(bucket)
        self._frames, self._worker = bucket.frames, worker
        self._pixels = torch.stack([self._pixels_of(c) for c in self._clips[: self._at_once]])

    def _pixels_of(self, clip: Clip) -> torch.Tensor:
        """Return a copy of a clip's pixels [T, H, W, 3], uint8: how long a model takes hangs on them."""
        decoded = self._worker.pool.decode(clip).result()
        pixels = torch.from_numpy(decoded.pixels.copy())
        decoded.release()
        return pixels

    def decode(self) -> None:
        """Decode every clip."""
        for future in [self._worker.pool.decode(clip) for clip in self._clips]:
            future.result().release()

    def encode(self) -> None:
        """Encode as many clips, all with the pixels of the first ones."""
        for _ in range(-(-len(self._clips) // self._at_once)):
            self._worker.encoder.encode(self._pixels)

    def rate(self, *parts: Callable[[], None]) -> float:
        """Do one or both, side by side; returns frames per second."""
        started = time.perf_counter()
        with ThreadPoolExecutor(len(parts)) as threads:
            for done in [threads.submit(part) for part in parts]:
                done.result()
        return self._frames * len(self._clips) / (time.perf_counter() - started)


def bench_apart(case: Case, folder: Path, rounds: int) -> None:
    """The pipeline against the two parts of its work, side by side and each alone."""
    prepared = case.planned(folder, "auto")
    worker = worker_of(prepared)
    apart = Apart(prepared, worker)
    pipeline, beside, ratio = alternate(
        lambda: encode_all(prepared, worker), lambda: apart.rate(apart.decode, apart.encode), rounds
    )
    decode, encode = apart.rate(apart.decode), apart.rate(apart.encode)
    worker.close()
    print(
        f"{case.name}: pipeline {pipeline:.1f} frames/s, decoding beside encoding {beside:.1f}: "
        f"{ratio:.2f}; by themselves {decode:.1f} and {encode:.1f}"
    )


def bench_batches(case: Case, folder: Path, rounds: int) -> None:
    """The pipeline with batches against one clip at a time."""
    folder.mkdir()
    plans = [case.planned(folder / str(batch), batch) for batch in ("auto", 1)]
    workers = [worker_of(prepared) for prepared in plans]
    auto, single, ratio = alternate(
        *(
            functools.partial(encode_all, prepared, worker)
            for prepared, worker in zip(plans, workers, strict=True)
        ),
        rounds,
    )
    for worker in workers:
        worker.close()
    print(f"{case.name}: batch auto {auto:.1f} frames/s, 1 {single:.1f}: {ratio:.2f}")


def main() -> None:
    """Run every case."""
    plain.MEASURED = 0  # three clips of a cache are encoded once more: too many of so few
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", help="folder of .mp4 files of 49 frames or more, 480x720")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each, in turn")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="latentcache-") as name:
        folder = Path(name)
        for number, case in enumerate(cases(folder, args.videos)):
            bench_apart(case, folder / f"{number}", args.rounds)
            if case.frames == 1:
                bench_batches(case, folder / f"{number} in batches", args.rounds)


if __name__ == "__main__":
    main()
