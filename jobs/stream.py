"""Read a cache as a trainer would: samples/s, MB/s, and the time that a training step would wait."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import torch

from latentcache.core.devices import resolve_device
from latentcache.errors import ConfigError
from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.storage.folder import redact

from . import parsers
from .cli import OK, run_job, storage_options


def main() -> int:
    """Parse the command line and run."""
    return run_job(stream, parsers.stream())


def stream(args: argparse.Namespace) -> int:
    """Stream and measure; returns the exit status."""
    if args.epochs < 1 or (args.steps is not None and args.steps < 1):
        raise ConfigError("--epochs and --steps are at least 1")
    device = resolve_device(args.device, "--device", others=True)
    cache = open_cache(args.cache, storage_options(args.overrides), disk_cache=args.disk_cache)
    spec = cache.spec
    print(
        f"cache    {redact(args.cache)}: {len(cache)} clips, {spec.model_class}, {spec.channels} "
        f"channels, {spec.stored} as {spec.dtype}"
    )
    loader = LatentLoader(
        cache,
        batch_size=args.batch_size,
        shuffle=not args.no_shuffle,
        seed=args.seed,
        num_threads=args.threads,
        device=device,
        check=not args.no_check,
    )
    started = time.perf_counter()
    steps = 0
    shapes: dict[str, tuple[int, ...]] = {}
    batches = itertools.chain.from_iterable(loader for _ in range(args.epochs))
    for batch in itertools.islice(batches, args.steps):
        shapes.setdefault(batch["bucket"], tuple(batch["latents"].shape))
        steps += 1
    if loader.device.type == "cuda":
        torch.cuda.synchronize(loader.device)
    wall_s = time.perf_counter() - started
    for bucket, shape in sorted(shapes.items()):
        print(f"bucket   {bucket}: batches of latents {list(shape)}")
    stats = loader.stats
    print(
        f"streamed {steps} batches, {stats.num_samples} samples in {wall_s:.2f} s: "
        f"{stats.num_samples / wall_s:.0f} samples/s, {stats.num_bytes / wall_s / 1e6:.0f} MB/s of "
        f"latents; waited {stats.wait_s:.2f} s for data"
    )
    return OK


if __name__ == "__main__":
    sys.exit(main())
