"""webdataset: tar files of raw samples; from S3 through curl, as its documentation shows."""

from __future__ import annotations

import functools
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loaders.latents import SHAPE, Latents
from benchmarks.loaders.reader import (
    BUCKET,
    SHARD_SAMPLES,
    Batch,
    Epochs,
    Place,
    Reader,
    as_batches,
    data_loader,
    needs,
)

#: Samples in its shuffle buffer: as many as a shard has.
BUFFER_SAMPLES = 32


def write(latents: Latents, folder: Path) -> None:
    """Write one .npy per sample, bfloat16 as int16 of the same bits."""
    folder.mkdir(parents=True)
    for first in range(0, len(latents), SHARD_SAMPLES):
        with tarfile.open(folder / f"{first // SHARD_SAMPLES:06d}.tar", "w") as tar:
            for index in range(first, min(first + SHARD_SAMPLES, len(latents))):
                buffer = io.BytesIO()
                np.save(buffer, latents[index].view(torch.int16).numpy())
                info = tarfile.TarInfo(f"{index:06d}.npy")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


def _sample(raw: dict[str, Any]) -> dict[str, Any]:
    """Take the array in place, at the end of the .npy; the package's own decoder copies it."""
    words = np.frombuffer(raw["npy"], np.int16, offset=len(raw["npy"]) - 2 * int(np.prod(SHAPE)))
    return {"index": int(raw["__key__"]), "latents": words.reshape(SHAPE)}


def open_loader(place: Place, num_workers: int) -> Epochs:
    """Open the shards, shuffled, and their samples through a buffer."""
    import webdataset

    names = sorted(path.name for path in place.folder.glob("*.tar"))
    if place.endpoint:
        base = f"{place.endpoint}/{BUCKET}/{place.folder.name}"
        urls = [f"pipe:curl -s -f {base}/{name}" for name in names]
    else:
        urls = [str(place.folder / name) for name in names]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(BUFFER_SAMPLES)
        .map(_sample)
    )
    return functools.partial(_epoch, data_loader(dataset, num_workers))


def _epoch(loader: Any, epoch: int) -> Iterator[Batch]:  # noqa: ARG001 - it counts by itself
    return as_batches(loader)


def _missing() -> str | None:
    return needs("webdataset", "webdataset")() or (None if shutil.which("curl") else "no curl here")


READERS = (
    Reader(
        name="webdataset tar",
        data="webdataset",
        write=write,
        open=open_loader,
        lanes="workers",
        missing=_missing,
    ),
)
