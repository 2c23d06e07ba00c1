"""Latents, an image tower and an image-to-video condition from one decode, beside the encoders' own times.

`python benchmarks/fields.py [--videos FOLDER] [--clips 5] [--base-dim 96] [--rounds 5]`

Prints the wall time of the pipeline, from files to a cache with two fields, as a ratio to the encoders' own
times on pixels that are decoded already; and to the time of making the latents and each field in turn. The
Wan VAE and the tower have random weights, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the jobs set it; see jobs/__init__.py

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from benchmarks.overhead import alternate, prepare, some_videos
from latentcache.config.fields import VisualField, parse_field
from latentcache.config.sections import QualityConfig
from latentcache.core.records import ShardId, ShardReport
from latentcache.format.fields.paths import field_folder
from latentcache.format.paths import sample_path
from latentcache.format.shards import get_format
from latentcache.planning.fields.planned import PlannedField, create_field, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.running.field_worker import FieldSpec
from latentcache.running.frame_fields import FrameField
from latentcache.running.one_decode import SharedSpec, SharedWorker
from latentcache.running.shared_fields import SharedFields
from latentcache.running.worker import SHARDS_IN_HAND, Worker
from tests.tools.texts.towers import TINY
from tests.tools.tiny_models import save_wan

FRAMES, HEIGHT, WIDTH = 17, 128, 192
CPU = torch.device("cpu")


def fields_of(cache: PlannedCache, tower: Path) -> dict[str, PlannedField]:
    """A tower's states of the first frame, and the condition of the first frame and zeros."""
    encoder = {"family": "wan_clip", "model": str(tower), "dtype": "float32"}
    settings = {
        "clip": {"kind": "visual", "of": "first", "encoder": encoder},
        "i2v": {"kind": "visual", "of": "first_then_zeros"},
    }
    return {n: create_field(plan_field(cache, n, parse_field(n, s))) for n, s in settings.items()}


def shards_of(cache: PlannedCache) -> list[ShardId]:
    """All shards, none of them committed: what is there is deleted."""
    (bucket,) = cache.manifest.buckets
    layout, shard_format = cache.manifest.layouts()[bucket.name], get_format(cache.manifest.format)
    for number in range(bucket.num_shards):
        cache.storage.delete(sample_path(bucket.name, number))
        cache.storage.delete(shard_format.path(layout, number))
    for name in ("clip", "i2v"):
        for file in cache.storage.files(field_folder(name)):
            if "/000001/" in file.path and not file.path.endswith("zarr.json"):
                cache.storage.delete(file.path)
    return [ShardId(bucket.name, number) for number in range(bucket.num_shards)]


def work(worker: Worker, tasks: Sequence[Any]) -> list[ShardReport]:
    """Encode and commit, as a runner has it done."""
    with ThreadPoolExecutor(SHARDS_IN_HAND) as pool:
        return list(pool.map(worker.encode_shard, tasks))


class Case:
    """The pipeline and what it is compared with, on one cache, with everything loaded."""

    def __init__(self, cache: PlannedCache, fields: Mapping[str, PlannedField]) -> None:
        config = cache.config.model_copy(update={"quality": QualityConfig(every=0)})
        facts: dict[str, Any] = {
            "config": config, "manifest": cache.manifest, "storage": cache.storage,
        }  # fmt: skip
        self._cache, self._fields = cache, fields
        shared = SharedFields(fields.values(), config.run)
        self.worker = SharedWorker(SharedSpec(**facts, fields=shared.for_workers), CPU)
        self.own = {
            name: FieldSpec(**facts, field=p.field, settings=p.config).start(CPU)
            for name, p in fields.items()
        }
        self._makers = {}
        for name, planned in fields.items():
            assert isinstance(planned.config, VisualField)
            encoder = self.worker.latents.encoder
            maker = FrameField(self.worker.spec, planned.field, planned.config, CPU, encoder)
            self._makers[name] = maker

    def together(self) -> float:
        """Seconds of one decode for all."""
        shards = shards_of(self._cache)
        shared = SharedFields(
            [
                PlannedField(cache=p.cache, field=p.field, config=p.config)
                for p in self._fields.values()
            ],
            self._cache.config.run,
        )
        started = time.perf_counter()
        reports = work(self.worker, [shared.with_parts(self._cache.plan.shard(s)) for s in shards])
        seconds = time.perf_counter() - started
        assert all(len(report.fields) == len(self._fields) for report in reports)
        return seconds

    def in_turn(self) -> float:
        """Seconds of the latents, and then of each field, which decodes for itself."""
        shards = shards_of(self._cache)
        started = time.perf_counter()
        work(self.worker.latents, [self._cache.plan.shard(shard) for shard in shards])
        for name, planned in self._fields.items():
            fresh = PlannedField(cache=planned.cache, field=planned.field, config=planned.config)
            work(self.own[name], [fresh.shard(shard) for shard in shards])
        return time.perf_counter() - started

    def encoders(self) -> float:
        """Seconds of the encoders by themselves, on pixels in memory."""
        shards = [self._cache.plan.shard(shard) for shard in shards_of(self._cache)]
        pixels = torch.randint(0, 256, (1, FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8)
        first = pixels[0, :1].numpy()
        started = time.perf_counter()
        for clip in (clip for shard in shards for clip in shard.clips):
            self.worker.latents.encoder.encode(pixels)
            for maker in self._makers.values():
                maker.sample(clip, 0, lambda: [first])
        return time.perf_counter() - started

    def close(self) -> None:
        """Stop what was started."""
        for worker in (self.worker, *self.own.values()):
            worker.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", help="folder of .mp4 files of 49 frames or more, 480x720")
    parser.add_argument("--clips", type=int, default=5, help="how many; without --videos")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--base-dim", type=int, default=96, help="of the Wan VAE; 96 is its own")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="latentcache-") as name:
        folder = Path(name)
        videos = some_videos(folder / "videos", args.videos, args.clips)
        vae = save_wan(folder / "wan", base_dim=args.base_dim, num_res_blocks=2, z_dim=16)
        encoder = {"kind": "diffusers_video", "model": str(vae), "dtype": "float32"}
        clips = {"frames": FRAMES, "size": [HEIGHT, WIDTH]}
        cache = prepare(folder, videos, 1, encoder={**encoder, "store": "moments"}, clips=clips)
        with closing(Case(cache, fields_of(cache, TINY["wan_clip"](folder / "tower")))) as case:
            for what, other in (("encoders only", case.encoders), ("in turn", case.in_turn)):
                ours, theirs, ratio = alternate(case.together, other, args.rounds)
                print(f"one decode {ours:.2f} s, {what} {theirs:.2f} s: {ratio:.3f}")


if __name__ == "__main__":
    main()
