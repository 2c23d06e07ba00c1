"""The order of batches from several caches: their own orders, interleaved by weights."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from latentcache.errors import ConfigError
from latentcache.reading.order.epoch import Batch, BucketShards, Epoch, Order
from latentcache.reading.order.philox import Int64, Words
from latentcache.reading.order.turns import Interleaved, OneByOne, Turns

#: The buckets of a cache in one of its own epochs.
BucketsIn: TypeAlias = Callable[[int], Sequence[BucketShards]]
#: A cache whose clips have such weights that so many epochs in a row hold no batch.
_MOST_EMPTY = 1000


class Mixture:
    """The batches of one epoch of one cache or of several, by place.

    Each cache goes through its own epochs, one after another, and continues in the mixture's next epoch
    where it was. An epoch has `num_batches`, or as many as the caches have together. `weights` are the
    caches' shares of it; omitted, each cache comes once per epoch. Raises ConfigError if a cache would
    get no batch.

    varying: of each cache whose clips have weights, its buckets by epoch; `caches` has those of a mean
    epoch. Then the epoch of one cache is as long as that cache's own.
    """

    def __init__(
        self,
        order: Order,
        caches: Sequence[Sequence[BucketShards]],
        epoch: int,
        *,
        weights: Sequence[float] | None = None,
        num_batches: int | None = None,
        varying: Sequence[BucketsIn | None] | None = None,
    ) -> None:
        self._epoch = epoch
        self._own = [
            _Own(order, number, buckets, change)
            for number, (buckets, change) in enumerate(
                zip(caches, varying or [None] * len(caches), strict=True)
            )
        ]
        self._is_one = len(caches) == 1 and num_batches is None
        lengths = [own.mean_length for own in self._own]
        if self._is_one:
            lengths = [self._own[0].length(epoch)]
        total = sum(lengths) if num_batches is None else num_batches
        self._run, runs = 1, np.array([total], np.int64)
        if len(caches) > 1:
            self._run = order.bucket_run
            runs = shares(total, weights or lengths, self._run)
        self._counts = self._run * runs
        self._num = int(self._counts.sum())
        self._turns: Turns = OneByOne(runs)
        if len(caches) > 1:
            self._turns = Interleaved(runs, Words(order.seed, epoch, 0, 0, 4))

    def __len__(self) -> int:
        return self._num

    def batch(self, place: int) -> tuple[int, int, Batch]:
        """Return the cache of the batch at a place, that cache's own epoch, and the batch.

        After the epoch's end its first batches come again.
        """
        run, offset = divmod(place % self._num, self._run)
        cache, turn = self._turns(run)
        own, turn = self._own[cache], turn * self._run + offset
        if self._is_one:
            return cache, self._epoch, own.plan(self._epoch).batch(turn)
        epoch, own_place = own.find(self._epoch * int(self._counts[cache]) + turn)
        return cache, epoch, own.plan(epoch).batch(own_place)


class _Own:
    """The epochs of one cache, one after another. varying: as Mixture says."""

    def __init__(
        self,
        order: Order,
        number: int,
        buckets: Sequence[BucketShards],
        varying: BucketsIn | None,
    ) -> None:
        self._order, self._number, self._buckets, self._varying = order, number, buckets, varying
        self.mean_length = order.num_batches(buckets)
        self._ends: list[int] = []
        self._open: tuple[int, Epoch] | None = None

    def length(self, epoch: int) -> int:
        """Return the number of batches of an own epoch."""
        if self._varying is None:
            return self.mean_length
        return self._order.num_batches(self._varying(epoch))

    def find(self, so_far: int) -> tuple[int, int]:
        """Return the own epoch, and the place in it, of the batch after so many of this cache."""
        if self._varying is None:
            return divmod(so_far, self.mean_length)
        while not self._ends or self._ends[-1] <= so_far:
            self._check_ends()
            last = self._ends[-1] if self._ends else 0
            self._ends.append(last + self.length(len(self._ends)))
        epoch = bisect.bisect_right(self._ends, so_far)
        return epoch, so_far - (self._ends[epoch - 1] if epoch else 0)

    def _check_ends(self) -> None:
        """Raise ConfigError where epochs never hold a batch."""
        ends = self._ends[-_MOST_EMPTY:]
        if len(ends) == _MOST_EMPTY and ends[0] == ends[-1]:
            raise ConfigError(
                f"cache {self._number} has so few clips, or of such small weights, that {_MOST_EMPTY} of "
                "its epochs hold no batch. Use a smaller batch_size, drop_last=False, or larger weights."
            )

    def plan(self, epoch: int) -> Epoch:
        """Return an own epoch; the one that was used last is kept."""
        if self._open is None or self._open[0] != epoch:
            buckets = self._buckets if self._varying is None else self._varying(epoch)
            self._open = epoch, Epoch(self._order, buckets, epoch, self._number)
        return self._open[1]


def shares(num_batches: int, weights: Sequence[float], run: int) -> Int64:
    """Return how many runs of batches each of several caches gets: nearest to the weights."""
    num_runs = num_batches // run
    exact = np.array(weights, np.float64) / sum(weights) * num_runs
    counts = np.floor(exact).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")
    counts[most[: num_runs - int(counts.sum())]] += 1
    if not counts.all():
        raise ConfigError(
            f"weights {list(weights)}: in an epoch of {num_batches} batches cache "
            f"{int(np.argmin(counts))} gets none. Give more epoch_batches, or leave the cache out."
        )
    return counts
