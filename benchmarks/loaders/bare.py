"""References without a loader around them: safetensors with kept handles, and preadv of a flat file.

Both read into batches that are reused, and shuffle over everything. From page cache only.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.loaders.latents import SAMPLE_BYTES, SHAPE, Latents
from benchmarks.loaders.reader import (
    BATCH_SIZE,
    PAGE_CACHE,
    READ_AHEAD,
    SHARD_SAMPLES,
    Batch,
    Epochs,
    Place,
    Reader,
    needs,
)

#: Reads a sample into a tensor of its shape.
Fetch = Callable[[int, torch.Tensor], object]


def _epochs(fetch: Fetch, num: int, num_threads: int) -> Epochs:
    ring = [torch.zeros((BATCH_SIZE, *SHAPE), dtype=torch.bfloat16) for _ in range(READ_AHEAD + 1)]
    pool = ThreadPoolExecutor(num_threads)
    return functools.partial(_epoch, fetch, num, ring, pool)


def _epoch(
    fetch: Fetch, num: int, ring: list[torch.Tensor], pool: ThreadPoolExecutor, epoch: int
) -> Iterator[Batch]:
    order = np.random.default_rng(epoch).permutation(num).tolist()
    batches = [order[first : first + BATCH_SIZE] for first in range(0, num, BATCH_SIZE)]
    under_way = []
    for turn, numbers in enumerate(batches):
        out = ring[turn % len(ring)][: len(numbers)]
        under_way.append(
            (numbers, out, [pool.submit(fetch, n, out[i]) for i, n in enumerate(numbers)])
        )
        if len(under_way) > READ_AHEAD:
            yield _finished(*under_way.pop(0))
    for entry in under_way:
        yield _finished(*entry)


def _finished(numbers: list[int], out: torch.Tensor, parts: list) -> Batch:  # type: ignore[type-arg]
    for part in parts:
        part.result()
    return numbers, out


def write_shards(latents: Latents, folder: Path) -> None:
    """Write one safetensors file per shard, one tensor per sample."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for first in range(0, len(latents), SHARD_SAMPLES):
        numbers = range(first, min(first + SHARD_SAMPLES, len(latents)))
        save_file({str(n): latents[n] for n in numbers}, folder / f"{first}.safetensors")


def open_shards(place: Place, num_threads: int) -> Epochs:
    """Keep a handle per shard."""
    from safetensors import safe_open

    handles = [
        safe_open(place.folder / f"{first}.safetensors", "pt")
        for first in range(0, place.num, SHARD_SAMPLES)
    ]

    def fetch(number: int, out: torch.Tensor) -> None:
        out.copy_(handles[number // SHARD_SAMPLES].get_tensor(str(number)))

    return _epochs(fetch, place.num, num_threads)


def write_flat(latents: Latents, folder: Path) -> None:
    """Link the latents' own file."""
    folder.mkdir(parents=True)
    (folder / "flat.bin").hardlink_to(latents.path)


def open_flat(place: Place, num_threads: int) -> Epochs:
    """Read with preadv straight into the batch."""
    file = os.open(place.folder / "flat.bin", os.O_RDONLY)

    def fetch(number: int, out: torch.Tensor) -> int:
        into = memoryview(out.view(torch.uint8).numpy().reshape(-1))
        return os.preadv(file, [into], number * SAMPLE_BYTES)

    return _epochs(fetch, place.num, num_threads)


READERS = (
    Reader(
        name="safetensors shards, handles kept",
        data="safetensors-shards",
        write=write_shards,
        open=open_shards,
        lanes="threads",
        sources=(PAGE_CACHE,),
        missing=needs("safetensors", "safetensors"),
    ),
    Reader(
        name="flat file, preadv",
        data="flat",
        write=write_flat,
        open=open_flat,
        lanes="threads",
        sources=(PAGE_CACHE,),
    ),
)
