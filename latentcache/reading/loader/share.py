"""Which batches of an epoch this process reads: those of its rank, and of its worker of a DataLoader."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch.utils.data import get_worker_info

from latentcache.reading.loader.state import Position
from latentcache.reading.order.epoch import Order, places


@dataclass(frozen=True, kw_only=True)
class Share:
    """The places of one rank of `world_size`, which the workers of its DataLoader take in turn."""

    order: Order
    rank: int
    world_size: int

    def of_rank(self, num_batches: int) -> range:
        """Return the places of the whole rank in an epoch of so many batches."""
        return self._places(num_batches, Position(0), worker=0, num_workers=1)

    def todo(self, num_batches: int, at: Position) -> range:
        """Return the places of this process's batches from there on."""
        worker = get_worker_info()
        return self._places(
            num_batches,
            at,
            worker=worker.id if worker else 0,
            num_workers=worker.num_workers if worker else 1,
        )

    def _places(self, num_batches: int, at: Position, *, worker: int, num_workers: int) -> range:
        return places(
            num_batches,
            start=at.start,
            rank=self.rank,
            world_size=self.world_size,
            worker=worker,
            num_workers=num_workers,
            uneven=self.order.uneven,
        )[at.taken :]

    def align(self, at: Position) -> Position:
        """Return where all ranks are at the same place of a run, after a change of the world size.

        Batches before the next step are left out or come again, as `uneven` says.
        """
        left = at.start % self.world_size
        if self.order.bucket_run == 1 or self.order.uneven == "exact" or not left:
            return at
        start = at.start - left + (self.world_size if self.order.uneven == "drop" else 0)
        return dataclasses.replace(at, start=start)

    def taken(self, at: Position) -> int:
        """Return how many batches of the epoch this rank has had there."""
        worker = get_worker_info()
        return at.start // self.world_size + at.taken * (worker.num_workers if worker else 1)

    def process(self) -> dict[str, int]:
        """Return what tells this process from the others, as a worker's state names it."""
        worker = get_worker_info()
        return {
            "id": worker.id if worker else 0,
            "num_workers": worker.num_workers if worker else 0,
            "rank": self.rank,
            "world_size": self.world_size,
        }
