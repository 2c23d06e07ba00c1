"""A torch DataLoader over one file per sample, as most trainers do it: .safetensors or .pt."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.loaders.latents import Latents
from benchmarks.loaders.reader import (
    BUCKET,
    Batch,
    Epochs,
    Place,
    Reader,
    data_loader,
    needs,
    storage_options,
)


def _load_pt(source: Any) -> torch.Tensor:
    latents: torch.Tensor = torch.load(source, weights_only=True)
    return latents


def _save_safetensors(latents: torch.Tensor, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"latents": latents}, path)


def _load_safetensors(source: Any) -> torch.Tensor:
    from safetensors.torch import load, load_file

    whole = load(source.getvalue()) if isinstance(source, io.BytesIO) else load_file(source)
    return whole["latents"]


class Files(Dataset[tuple[int, torch.Tensor]]):
    """One file per sample; opens its own S3 client in each worker."""

    def __init__(self, place: Place, suffix: str, load: Callable[[Any], torch.Tensor]) -> None:
        self._place, self._suffix, self._load = place, suffix, load
        self._client: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._place.num

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        name = _name(index, self._suffix)
        if not self._place.endpoint:
            return index, self._load(str(self._place.folder / name))
        data = self._s3().cat_file(f"{BUCKET}/{self._place.folder.name}/{name}")
        return index, self._load(io.BytesIO(data))

    def _s3(self) -> Any:
        if self._client is None or self._client[0] != os.getpid():
            import s3fs

            options = storage_options(self._place)
            self._client = os.getpid(), s3fs.S3FileSystem(**options, skip_instance_cache=True)
        return self._client[1]


def _name(index: int, suffix: str) -> str:
    return f"{index:06d}.{suffix}"


def write(latents: Latents, folder: Path, *, suffix: str, save: Callable[..., None]) -> None:
    """Write one file per sample."""
    folder.mkdir(parents=True)
    for index in range(len(latents)):
        save(latents[index], folder / _name(index, suffix))


def open_loader(place: Place, num_workers: int, *, suffix: str, load: Any) -> Epochs:
    """Open a DataLoader that shuffles."""
    loader = data_loader(Files(place, suffix, load), num_workers, shuffle=True)
    return functools.partial(_epoch, loader)


def _epoch(loader: Any, epoch: int) -> Iterator[Batch]:  # noqa: ARG001 - it counts by itself
    for numbers, latents in loader:
        yield numbers.tolist(), latents


def _reader(suffix: str, save: Any, load: Any, missing: Any) -> Reader:
    return Reader(
        name=f"DataLoader over .{suffix} files",
        data=f"files-{suffix}",
        write=functools.partial(write, suffix=suffix, save=save),
        open=functools.partial(open_loader, suffix=suffix, load=load),
        lanes="workers",
        missing=missing,
    )


READERS = (
    _reader(
        "safetensors",
        _save_safetensors,
        _load_safetensors,
        needs("safetensors", "safetensors"),
    ),
    _reader("pt", torch.save, _load_pt, lambda: None),
)
