"""latentcache: both formats, compressed or not, checked or not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from benchmarks.loaders.latents import SAMPLE_BYTES, SHAPE, Latents
from benchmarks.loaders.reader import (
    BATCH_SIZE,
    PAGE_CACHE,
    READ_AHEAD,
    S3,
    SHARD_SAMPLES,
    Batch,
    Epochs,
    Place,
    Reader,
    storage_options,
)
from latentcache.core.dtypes import as_numpy
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import write_cache

BUCKET = "49x480x720"


def write(latents: Latents, folder: Path, *, format: str, codec: str) -> None:  # noqa: A002
    """Write the cache through the real formats and tables."""
    write_cache(
        str(folder),
        format=format,
        codec=codec,
        channels=SHAPE[0],
        buckets={BUCKET: len(latents)},
        shard_clips=SHARD_SAMPLES,
        make=lambda layout, rng, position: as_numpy(latents[position]),  # noqa: ARG005
    )


def open_loader(place: Place, num_threads: int, *, check: bool = True) -> Epochs:
    """Open the cache."""
    loader = LatentLoader(
        place.url,
        batch_size=BATCH_SIZE,
        num_threads=num_threads,
        normalise=False,
        prefetch_bytes=READ_AHEAD * BATCH_SIZE * SAMPLE_BYTES,
        storage_options=storage_options(place),
        check=check,
    )
    return functools.partial(_epoch, loader)


def _epoch(loader: LatentLoader, epoch: int) -> Iterator[Batch]:
    loader.set_epoch(epoch)
    for batch in loader:
        yield [int(key.rpartition("-")[2]) for key in batch["key"]], batch["latents"]


def _reader(format: str, codec: str, *, check: bool = True) -> Reader:  # noqa: A002
    data = f"{format} {codec}".replace(" none", " raw")
    return Reader(
        name=f"latentcache {data}{'' if check else ', no CRC'}",
        data=f"latentcache-{data}".replace(" ", "-"),
        write=functools.partial(write, format=format, codec=codec),
        open=functools.partial(open_loader, check=check),
        lanes="threads",
        sources=(PAGE_CACHE, S3) if check else (PAGE_CACHE,),
    )


READERS = (
    _reader("zarr", "zstd"),
    _reader("zarr", "zstd", check=False),
    _reader("zarr", "none"),
    _reader("zarr", "none", check=False),
    _reader("parquet", "zstd"),
)
