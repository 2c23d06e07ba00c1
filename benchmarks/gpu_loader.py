"""The loader into a GPU against the training step that it hides behind; a part of `gpu.py`.

The loader reads into pinned memory and copies on a stream of its own. The step is products of matrices that
take somewhat longer than the loader, so that all of the loader's work could be hidden behind it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import write_cache

HEAD = ["latents", "MB a batch", "loader ms", "step ms", "both ms", "hidden"]
#: What is stored and read, by name: keys of `write_cache`. Of moments, a sample is drawn.
STORED = {"means": "mean", "samples of moments": "moments"}
BATCH = 8
#: The step takes this many times as long as the loader.
LONGER = 1.5
#: One product, to see how many fit into a step.
TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """A cache to read and a step to run. matrix: rows and columns of what the step multiplies."""

    bucket: str
    num_samples: int
    channels: int
    matrix: int


FULL = Case(bucket="49x480x720", num_samples=256, channels=16, matrix=4096)
TINY = Case(bucket="5x32x32", num_samples=32, channels=4, matrix=64)


def rows(case: Case, device: torch.device) -> Iterator[list[str]]:
    """Rows of the table, one for each kind of latents."""
    for name, stored in STORED.items():
        with tempfile.TemporaryDirectory(prefix="latentcache-") as folder:
            cache = write_cache(
                folder,
                codec="none",
                stored=stored,
                channels=case.channels,
                buckets={case.bucket: case.num_samples},
                shard_clips=32,
            )
            yield [name, *_row(LatentLoader(cache.url, batch_size=BATCH, device=device), case)]


def _row(loader: LatentLoader, case: Case) -> list[str]:
    device = loader.device
    batch = next(iter(loader))["latents"]
    megabytes = batch.numel() * batch.element_size() / 1e6
    loader_s = _epoch_s(loader, lambda _: None)
    step = _step(case, device, LONGER * loader_s)
    step_s = _seconds(device, lambda: [step(batch) for _ in range(len(loader))]) / len(loader)
    both_s = _epoch_s(loader, step)
    hidden = 1 - min(1.0, max(0.0, both_s - step_s) / loader_s)
    figures = [f"{1000 * s:.2f}" for s in (loader_s, step_s, both_s)]
    return [f"{megabytes:.1f}", *figures, f"{hidden:.0%}"]


def _epoch_s(loader: LatentLoader, step: Callable[[torch.Tensor], object]) -> float:
    """Seconds a batch of an epoch, each followed by a step; the device is waited for at the end."""

    def epoch() -> None:
        for batch in loader:
            step(batch["latents"])

    return _seconds(loader.device, epoch) / len(loader)


def _step(case: Case, device: torch.device, seconds: float) -> Callable[[torch.Tensor], Any]:
    """Return what takes so long on the device, and needs the latents to be there."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.randn(case.matrix, case.matrix, device=device, dtype=dtype)

    def products(number: int) -> torch.Tensor:
        product = left
        for _ in range(number):
            product = (left @ product).clamp_(-1, 1)
        return product

    products(TRIALS)  # warms up
    one_s = _seconds(device, lambda: products(TRIALS)) / TRIALS
    number = max(1, round(seconds / one_s))
    return lambda latents: products(number).sum() + latents.sum()


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
