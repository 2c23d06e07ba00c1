"""The order of batches from several caches: their own orders, interleaved by weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentcache.errors import ConfigError
from latentcache.reading.order.epoch import Batch, BucketShards, Epoch, Order
from latentcache.reading.order.philox import Int64, Words
from latentcache.reading.order.turns import Interleaved, OneByOne, Turns


class Mixture:
    """The batches of one epoch of one cache or of several, by place.

    Each cache goes through its own epochs, one after another, and continues in the mixture's next epoch
    where it was. An epoch has `num_batches`, or as many as the caches have together. `weights` are the
    caches' shares of it; omitted, each cache comes once per epoch. Raises ConfigError if a cache would
    get no batch.
    """

    def __init__(
        self,
        order: Order,
        caches: Sequence[Sequence[BucketShards]],
        epoch: int,
        *,
        weights: Sequence[float] | None = None,
        num_batches: int | None = None,
    ) -> None:
        self._order, self._caches, self._epoch = order, caches, epoch
        self._lengths = [order.num_batches(buckets) for buckets in caches]
        total = sum(self._lengths) if num_batches is None else num_batches
        self._run, runs = 1, np.array([total], np.int64)
        if len(caches) > 1:
            self._run = order.bucket_run
            runs = shares(total, weights or self._lengths, self._run)
        self._counts = self._run * runs
        self._num = int(self._counts.sum())
        self._turns: Turns = OneByOne(runs)
        if len(caches) > 1:
            self._turns = Interleaved(runs, Words(order.seed, epoch, 0, 0, 4))
        self._open: dict[int, tuple[int, Epoch]] = {}

    def __len__(self) -> int:
        return self._num

    def batch(self, place: int) -> tuple[int, int, Batch]:
        """Return the cache of the batch at a place, that cache's own epoch, and the batch.

        After the epoch's end its first batches come again.
        """
        run, offset = divmod(place % self._num, self._run)
        cache, turn = self._turns(run)
        so_far = self._epoch * int(self._counts[cache]) + turn * self._run + offset
        epoch, own_place = divmod(so_far, self._lengths[cache])
        return cache, epoch, self._epoch_of(cache, epoch).batch(own_place)

    def _epoch_of(self, cache: int, epoch: int) -> Epoch:
        number, plan = self._open.get(cache, (None, None))
        if plan is None or number != epoch:
            plan = Epoch(self._order, self._caches[cache], epoch, cache)
            self._open[cache] = (epoch, plan)
        return plan


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
