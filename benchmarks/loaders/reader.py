"""What a contestant is: how it writes the latents, and how it reads them as batches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.loaders.latents import Latents

BATCH_SIZE = 8
#: Samples per shard, in every format that has shards: 72 MB raw, near the peers' default of 64 MB.
SHARD_SAMPLES = 32
#: Batches that a reader has in progress or ready, at most: about equal for all.
READ_AHEAD = 8
BUCKET = "latents"
REGION = "us-east-1"
KEY, SECRET = "benchmark", "benchmark"

PAGE_CACHE, S3 = "page-cache", "s3"

#: Numbers of the samples of a batch, and the batch: [B, C, T, H, W], bfloat16, on the CPU.
Batch = tuple[Sequence[int], torch.Tensor]
#: The batches of an epoch by its number; epochs are asked for in turn.
Epochs = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a format's data are. folder: on disk. endpoint: of the S3 server that has them, or None.

    scratch: an empty folder for the reader's own copies; num: samples.
    """

    folder: Path
    scratch: Path
    num: int
    endpoint: str | None = None

    @property
    def url(self) -> str:
        """The folder's URL for S3 clients, or its path."""
        return f"s3://{BUCKET}/{self.folder.name}" if self.endpoint else str(self.folder)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A loader with its format. data: the name of its folder, which other readers may share.

    lanes: what the varied number counts, "threads" or "workers" (0: none, the consumer reads).
    missing: why it cannot run here, or None.
    """

    name: str
    data: str
    write: Callable[[Latents, Path], None]
    open: Callable[[Place, int], Epochs]
    lanes: str
    sources: Sequence[str] = (PAGE_CACHE, S3)
    missing: Callable[[], str | None] = lambda: None

    def grid(self, source: str, num_cores: int) -> list[int]:
        """Numbers of threads or workers to try: fewer than cores and more, as bandwidth allows."""
        if source == S3:
            return [4 * num_cores, 8 * num_cores] if self.lanes == "threads" else [2, 2 * num_cores]
        least = 1 if self.lanes == "threads" else 0
        return sorted(
            {least, num_cores // 2, num_cores} | ({2 * num_cores} - {0} if least else set())
        )


def needs(module: str, package: str) -> Callable[[], str | None]:
    """A reader's `missing`, if it needs a package."""
    return lambda: None if importlib.util.find_spec(module) else f"pip install {package}"


def storage_options(place: Place) -> dict[str, Any]:
    """What s3fs needs to reach the server."""
    client = {"endpoint_url": place.endpoint, "region_name": REGION}
    return {"key": KEY, "secret": SECRET, "client_kwargs": client} if place.endpoint else {}


def data_loader(dataset: Any, num_workers: int, make: Any = DataLoader, **kwargs: Any) -> Any:
    """A DataLoader as a trainer sets it up for throughput."""
    more: dict[str, Any] = {}
    if num_workers:
        more = {"persistent_workers": True, "prefetch_factor": max(2, READ_AHEAD // num_workers)}
    return make(dataset, batch_size=BATCH_SIZE, num_workers=num_workers, **more, **kwargs)


def as_batches(loader: Any) -> Iterator[Batch]:
    """The batches of a loader of samples {"index", "latents": int16 [C, T, H, W]}."""
    for batch in loader:
        latents = batch["latents"]
        yield batch["index"].tolist(), latents.view(torch.bfloat16)
