"""mosaicml-streaming: MDS, raw and with whole shards compressed by zstd.

Compressed shards are read only from S3: from a disk they are read once, and then left there raw.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.loaders.latents import SAMPLE_BYTES, SHAPE, Latents
from benchmarks.loaders.reader import (
    KEY,
    PAGE_CACHE,
    REGION,
    S3,
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

#: What streaming imports from torchvision for its image datasets.
PLACEHOLDERS = {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
}


def load(name: str = "streaming") -> Any:
    """Import a module of streaming, even if torchvision is not installed."""
    if importlib.util.find_spec("torchvision"):
        return importlib.import_module(name)
    importlib.import_module("transformers.tokenization_utils_base")  # looks for a real torchvision
    with _placeholders():
        return importlib.import_module(name)


@contextmanager
def _placeholders() -> Iterator[None]:
    for module, attributes in PLACEHOLDERS.items():
        sys.modules[module] = ModuleType(module)
        for attribute in attributes:
            setattr(sys.modules[module], attribute, type(attribute, (), {}))
    try:
        yield
    finally:
        for module in PLACEHOLDERS:
            sys.modules.pop(module)


def write(latents: Latents, folder: Path, *, compression: str | None) -> None:
    """Write MDS; it has no bfloat16, so the latents go in as int16 of the same bits."""
    columns = {"index": "int", "latents": "ndarray:int16:" + ",".join(map(str, SHAPE))}
    with load().MDSWriter(
        out=str(folder),
        columns=columns,
        compression=compression,
        size_limit=SHARD_SAMPLES * (SAMPLE_BYTES + 64),
    ) as writer:
        for index in range(len(latents)):
            words = latents[index].view(torch.int16).numpy()
            writer.write({"index": index, "latents": words})


def open_loader(place: Place, num_workers: int) -> Epochs:
    """Open the dataset in its default order, py1e."""
    streaming = load()
    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    if place.endpoint:
        os.environ.update(
            S3_ENDPOINT_URL=place.endpoint,
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_DEFAULT_REGION=REGION,
        )
    dataset = streaming.StreamingDataset(
        remote=place.url if place.endpoint else None,
        local=str(place.scratch if place.endpoint else place.folder),
        shuffle=True,
        batch_size=8,
    )
    for stream in dataset.streams:
        # The client that fetched the index has a connection. Forked workers would all read from it, and
        # answers would get mixed up.
        stream._downloader.clean_up()
    loader = data_loader(dataset, num_workers)
    return functools.partial(_epoch, loader)


def _epoch(loader: Any, epoch: int) -> Iterator[Batch]:  # noqa: ARG001 - it counts by itself
    return as_batches(loader)


def _reader(name: str, compression: str | None, *sources: str) -> Reader:
    return Reader(
        name=f"mosaicml-streaming MDS {name}",
        data=f"mds-{name}",
        write=functools.partial(write, compression=compression),
        open=open_loader,
        lanes="workers",
        sources=sources,
        missing=needs("streaming", "--no-deps mosaicml-streaming"),
    )


READERS = (_reader("raw", None, PAGE_CACHE, S3), _reader("zstd", "zstd:5", S3))
