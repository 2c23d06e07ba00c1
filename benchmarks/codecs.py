"""What the codecs make of real latents: size, and the rate of decompression on one core beside zstd.

`python benchmarks/codecs.py LATENTS... [--rounds N]`

LATENTS: files that torch.load reads, each with a tensor. As bfloat16 they are compressed as Zarr shards
hold them. Rates are CPU time, alternating in one process; ratios are of the same round.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import google_crc32c
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from latentcache.config.sections import CompressionConfig
from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import Bucket
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout

CODECS = get_args(CompressionConfig.model_fields["codec"].annotation)


def load(path: Path) -> Array:
    """Return the latents of a file as bfloat16, one sample."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    tensor = found if isinstance(found, torch.Tensor) else next(iter(found.values()))
    bits = tensor.reshape(tensor.shape[-4:]).to(torch.bfloat16).contiguous().view(torch.int16)
    return bits.numpy().view(numpy_dtype("bfloat16"))


def packed(latents: Array, codec: str) -> tuple[int, float, Callable[[], object]]:
    """Return the bytes of a stored sample, the s that compressing took, and what decompresses it."""
    layout = ArrayLayout(
        bucket=Bucket(frames=1, height=8, width=8),
        shape=latents.shape,
        dtype="bfloat16",
        num_rows=1,
        shard_rows=1,
        codec=codec,
    )
    zarr, started = get_format("zarr"), time.process_time()
    shard = zarr.encode_shard(layout, 0, [latents])
    spent_s, chunk, out = time.process_time() - started, shard.chunks[0], np.empty_like(latents)
    assert chunk is not None
    return chunk.length, spent_s, lambda: zarr.decode(layout, shard.body, chunk, out)


def cpu_s(call: Callable[[], object], times: int = 5) -> float:
    """Return the CPU time of one call."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def main() -> None:
    """Print a line per file and codec, and what the CRC32C of all bytes costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("latents", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    print(machine())
    for path in args.latents:
        latents = load(path)
        stored = {codec: packed(latents, codec) for codec in CODECS}
        as_bytes = latents.view(np.uint8).reshape(-1)
        works = {codec: work for codec, (_, _, work) in stored.items()}
        works["CRC32C"] = functools.partial(google_crc32c.value, as_bytes)
        rounds = [{name: cpu_s(work) for name, work in works.items()} for _ in range(args.rounds)]
        print(f"{path.name}: {latents.nbytes} bytes")
        for name in works:
            rate = statistics.median(1 / found[name] for found in rounds)
            ratio = statistics.median(found["zstd"] / found[name] for found in rounds)
            line = f"  {name:7} {rate:7.0f} samples/s a core, {ratio:.2f} of zstd's"
            if name in stored:
                size, spent_s, _ = stored[name]
                line += f"; {size / latents.nbytes:.3f} of the size, compressed in {spent_s * 1e3:.0f} ms"
            print(line)


if __name__ == "__main__":
    main()
