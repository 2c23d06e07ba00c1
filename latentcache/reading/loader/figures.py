"""What a trainer waits for, on the way to TensorBoard or Weights & Biases."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import get_worker_info

from latentcache.core import sinks
from latentcache.core.sinks import Sinks
from latentcache.errors import ConfigError
from latentcache.reading.loader.prefetch import Waiting


@dataclass
class LoaderStats(Waiting):
    """What this object has yielded. num_bytes: of latents in the stored dtype; wait_s: waiting for data.

    num_skipped: damaged clips that were left out, with on_damaged="skip".
    Under a DataLoader with workers, only the workers' copies count; this one stays at zero.
    """

    num_batches: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    num_skipped: int = 0


class Figures:
    """A loader's figures: its stats, and `loader/waiting`, the part of the time that was spent waiting.

    Each process opens its own sinks once, when it first iterates: they are neither sent to the workers of
    a DataLoader nor used by their forks.
    """

    def __init__(self, *, tensorboard: str | None, wandb: str | None, rank: int) -> None:
        places = {"tensorboard": tensorboard, "wandb": wandb}
        self._places = {name: place for name, place in places.items() if place is not None}
        for name, place in self._places.items():
            if not isinstance(place, str | os.PathLike) or not str(place):
                raise ConfigError(f"{name} is {place!r}: it must be text, a {_WHAT[name]}")
            sinks.check_installed(name, name)
        self._rank = rank
        self._opened: tuple[int, Sinks] | None = None  # by the process

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def written(
        self, batches: Iterator[Any], stats: Waiting, step: Callable[[], int]
    ) -> Iterator[Any]:
        """Return the batches; writes figures while they are taken. step: batches that this rank has had."""
        return self._written(batches, stats, step) if self._places else batches

    def _written(
        self, batches: Iterator[Any], stats: Waiting, step: Callable[[], int]
    ) -> Iterator[Any]:
        opened = self._sinks()
        at_s, waited_s = time.monotonic(), stats.wait_s

        def write() -> None:
            share = (stats.wait_s - waited_s) / max(time.monotonic() - at_s, 1e-9)
            values = {f"loader/{name}": value for name, value in dataclasses.asdict(stats).items()}
            opened.add({**values, "loader/waiting": min(share, 1.0)}, step())

        try:
            for batch in batches:
                if time.monotonic() - at_s > sinks.INTERVAL_S:
                    write()
                    at_s, waited_s = time.monotonic(), stats.wait_s
                yield batch
        finally:
            write()

    def _sinks(self) -> Sinks:
        if self._opened is None or self._opened[0] != os.getpid():
            opened = {
                name: sinks.open_sink(name, name, str(place), self._name(name))
                for name, place in self._places.items()
            }
            self._opened = os.getpid(), Sinks(opened)
        return self._opened[1]

    def _name(self, sink: str) -> str:
        worker = get_worker_info()
        if worker is None:
            return f"loader-rank-{self._rank}"
        if sink == "wandb":
            raise ConfigError(
                "wandb is set, and the loader is in a worker of a DataLoader: a run of Weights & Biases "
                "belongs to one process. Iterate the loader without a DataLoader (it reads ahead in "
                "threads), use num_workers=0, or set tensorboard, which has a file per worker."
            )
        return f"loader-rank-{self._rank}-worker-{worker.id}"


_WHAT = {"tensorboard": "folder", "wandb": "project of Weights & Biases"}
