"""litData: chunks of raw items, or of items compressed by zstd."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.loaders.latents import Latents
from benchmarks.loaders.reader import (
    KEY,
    REGION,
    SECRET,
    SHARD_SAMPLES,
    Batch,
    Epochs,
    Place,
    Reader,
    as_batches,
    data_loader,
    needs,
)


def _item(index: int, latents: Latents) -> dict[str, Any]:
    # As int16: litData writes through numpy, and torch cannot give numpy a bfloat16.
    return {"index": index, "latents": latents[index].view(torch.int16)}


def write(latents: Latents, folder: Path, *, compression: dict[str, Any]) -> None:
    """Write the chunks with litData's own job."""
    import litdata

    litdata.optimize(
        fn=functools.partial(_item, latents=latents),
        inputs=list(range(len(latents))),
        output_dir=str(folder),
        chunk_size=SHARD_SAMPLES,
        num_workers=1,
        verbose=False,
        **compression,
    )


def open_loader(place: Place, num_workers: int) -> Epochs:
    """Open the dataset, shuffled within and over its chunks."""
    import litdata

    _allow_http()
    options = {
        "endpoint_url": place.endpoint,
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "region_name": REGION,
    }
    dataset = litdata.StreamingDataset(
        place.url,
        cache_dir=str(place.scratch) if place.endpoint else None,
        storage_options=options if place.endpoint else None,
        shuffle=True,
        drop_last=False,
    )
    loader = data_loader(dataset, num_workers, litdata.StreamingDataLoader)
    return functools.partial(_epoch, loader)


def _allow_http() -> None:
    """Let obstore, which litData downloads through, speak to an endpoint without TLS."""
    from litdata.streaming import downloader

    options = getattr(downloader, "_OBSTORE_CLIENT_OPTIONS", None)  # there is no setting for it
    if options is not None:
        options["allow_http"] = True


def _epoch(loader: Any, epoch: int) -> Iterator[Batch]:  # noqa: ARG001 - it counts by itself
    return as_batches(loader)


def _reader(name: str, **compression: Any) -> Reader:
    return Reader(
        name=f"litdata {name}",
        data=f"litdata-{name}",
        write=functools.partial(write, compression=compression),
        open=open_loader,
        lanes="workers",
        missing=needs("litdata", "--no-deps litdata"),
    )


READERS = (
    _reader("raw"),
    _reader("zstd", compression="zstd:5", compression_level="sample"),
)
