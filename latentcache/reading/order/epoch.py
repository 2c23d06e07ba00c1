"""The order of batches from a planned pool of shards: a pure function of seed and epoch, by place.

Samples of a batch share a bucket. When shuffled, a bucket's shards come in random order. Its samples are
shuffled within a window of as many samples as its share of `pool_bytes` holds (see `window`). Batches of
the buckets are interleaved in proportion (see `turns`). 64 samples from a window of 128 shards meet 50 of
them on average, and three quarters of that at the two ends of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from latentcache.core.arguments import one_of, whole_number, yes_or_no
from latentcache.reading.order import window
from latentcache.reading.order.philox import Int64, Words
from latentcache.reading.order.turns import Interleaved, OneByOne, Turns

Uneven = Literal["drop", "pad", "exact"]

#: The most samples in a pool: a wider window shuffles no better and takes memory to sort.
MAX_POOL_SAMPLES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BucketShards:
    """A bucket: num_samples, int64, of each of its shards; and the bytes of one sample in memory."""

    num_samples: Int64
    sample_bytes: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket. shards, rows: each sample's shard and its number in it; same length."""

    bucket: int
    shards: Sequence[int]
    rows: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What determines the order of an epoch. seed >= 0; the buckets share pool_bytes.

    bucket_run: this many batches in a row share a bucket, and the i-th of each run takes only from the
    i-th part of the bucket's shards. With a multiple of the world size, every step is of one bucket on
    all ranks, and hardly any shard is read by two ranks.

    uneven: what becomes of batches that do not make a whole step for all ranks (`places`) or a whole run:
    "drop" leaves them out of this epoch; "pad" fills up with batches of the same epoch; "exact" takes
    each batch once, so some ranks have one batch more, and there are short runs at the end.
    """

    seed: int = 0
    batch_size: int = 8
    shuffle: bool = True
    drop_last: bool = False
    pool_bytes: int = 4 << 30
    bucket_run: int = 1
    uneven: Uneven = "drop"

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("batch_size", 1), ("pool_bytes", 1), ("bucket_run", 1)):
            number = whole_number(name, getattr(self, name), least)
            object.__setattr__(self, name, number)  # an int: states are JSON
        yes_or_no("shuffle", self.shuffle)
        yes_or_no("drop_last", self.drop_last)
        one_of("uneven", self.uneven, get_args(Uneven))

    def num_batches(self, buckets: Sequence[BucketShards]) -> int:
        """Return the number of batches of an epoch, over all ranks."""
        batches = [self.batches_of(bucket) for bucket in buckets]
        if self.uneven == "exact":
            return sum(batches)
        return self.bucket_run * sum(map(self.runs_of, batches))

    def batches_of(self, bucket: BucketShards) -> int:
        """Return the number of batches that a bucket's samples make."""
        total = int(bucket.num_samples.sum())
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def runs_of(self, num_batches: int) -> int:
        """Return the number of whole runs that a bucket's batches make, including padded runs."""
        if self.uneven == "pad":
            return -(-num_batches // self.bucket_run)
        return num_batches // self.bucket_run

    def batches(
        self, buckets: Sequence[BucketShards], epoch: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch in their canonical order, from the one at `start` on."""
        plan = Epoch(self, buckets, epoch)
        return (plan.batch(place) for place in range(start, len(plan)))


class Epoch:
    """The batches of one epoch, by place: a batch costs the same wherever it is.

    cache: its number, if there are several. Holds a few numbers per shard and per sample of the pool.
    """

    def __init__(
        self, order: Order, buckets: Sequence[BucketShards], epoch: int, cache: int = 0
    ) -> None:
        self._order = order
        self._num = order.num_batches(buckets)
        self._batches = np.array([order.batches_of(b) for b in buckets], np.int64)
        runs = np.array([order.runs_of(n) for n in self._batches.tolist()], np.int64)
        self._num_in_runs = order.bucket_run * int(runs.sum())
        self._left = OneByOne(self._batches - order.bucket_run * runs)
        self._turns: Turns = OneByOne(runs)
        if order.shuffle:
            self._turns = Interleaved(runs, Words(order.seed, epoch, cache, 0, 3))
        self._buckets = [
            _Bucket(order, bucket, width, (order.seed, epoch, cache, n))
            for n, (bucket, width) in enumerate(zip(buckets, _windows(order, buckets), strict=True))
        ]

    def __len__(self) -> int:
        return self._num

    def batch(self, place: int) -> Batch:
        """Return the batch at a place; after the epoch's end its first ones come again."""
        number, batch = self._locate(place % self._num)
        shards, rows = self._buckets[number].batch(batch % int(self._batches[number]))
        return Batch(bucket=number, shards=shards.tolist(), rows=rows.tolist())

    def _locate(self, place: int) -> tuple[int, int]:
        """Return the bucket of the batch at a place, and its number in the bucket."""
        length = self._order.bucket_run
        if place < self._num_in_runs:
            bucket, run = self._turns(place // length)
            return bucket, run * length + place % length
        bucket, left = self._left(place - self._num_in_runs)
        return bucket, int(self._batches[bucket]) // length * length + left


class _Bucket:
    """The batches of one bucket, in `bucket_run` lanes: batch k is in lane k % bucket_run."""

    def __init__(
        self, order: Order, bucket: BucketShards, width: int, key: tuple[int, ...]
    ) -> None:
        self._order, self._num_batches = order, order.batches_of(bucket)
        self._total = int(bucket.num_samples.sum())
        self._shards = np.flatnonzero(bucket.num_samples)
        if order.shuffle:
            shuffled = Words(*key, 1).permutation(len(self._shards))
            self._shards = self._shards[shuffled]
        self._starts = np.concatenate([[0], np.cumsum(bucket.num_samples[self._shards])])
        self._in_order = window.Sequence(self._starts)
        self._words = Words(*key, 2)
        self._width = width if width >= self._total else width // order.bucket_run
        self._lanes: dict[int, window.Shuffled] = {}

    def batch(self, number: int) -> tuple[Int64, Int64]:
        """Return (shard, row) of the samples of a batch."""
        size, samples = self._order.batch_size, self._in_order
        if self._order.shuffle:
            number, lane = divmod(number, self._order.bucket_run)
            samples = self._lane(lane)
        places, rows = samples.take(number * size, (number + 1) * size)
        return self._shards[places], rows

    def _lane(self, lane: int) -> window.Shuffled:
        """Return the samples of a lane.

        Lanes divide the shards, laid end to end, by their batches. The lane with the bucket's last batch
        is laid last, and gets the samples that make no whole batch.
        """
        if lane not in self._lanes:
            place = (lane - self._num_batches) % self._order.bucket_run
            is_last = place == self._order.bucket_run - 1
            low = self._start_of(place)
            high = self._total if is_last else self._start_of(place + 1)
            self._lanes[lane] = window.Shuffled(self._starts, low, high, self._width, self._words)
        return self._lanes[lane]

    def _start_of(self, place: int) -> int:
        """Return where the lane at a place begins: lanes with a batch more come last."""
        each, more = divmod(self._num_batches, self._order.bucket_run)
        short = self._order.bucket_run - more
        return self._order.batch_size * (place * each + max(0, place - short))


def _windows(order: Order, buckets: Sequence[BucketShards]) -> list[int]:
    """Return the width in samples of each bucket's window, from its share of the bytes."""
    all_bytes = sum(int(b.num_samples.sum()) * b.sample_bytes for b in buckets)
    return [_window(order.pool_bytes, bucket, all_bytes) for bucket in buckets]


def _window(pool_bytes: int, bucket: BucketShards, all_bytes: int) -> int:
    total = int(bucket.num_samples.sum())
    own_bytes = total * bucket.sample_bytes
    held = pool_bytes * own_bytes // max(all_bytes, 1) // max(bucket.sample_bytes, 1)
    if held >= total and total <= MAX_POOL_SAMPLES:
        return total
    # A shard is in the pool from its first sample to its last: a window, its own length, and one entering.
    return max(0, min(held, MAX_POOL_SAMPLES) - 2 * int(bucket.num_samples.max(initial=0)))


def places(
    num_batches: int,
    *,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    worker: int = 0,
    num_workers: int = 1,
    uneven: Uneven = "drop",
) -> range:
    """Return the places of one worker of one rank, from batch `start` of all batches on.

    Rank r takes start + r, start + r + world_size, ... Of these its worker w of k takes every k-th,
    starting at the w-th. A DataLoader takes from its workers in turn, which restores the rank's order for
    any k. Every rank has as many, except with "exact"; with "pad", places go past the epoch's end.
    """
    left = max(0, num_batches - start)
    steps = left // world_size if uneven == "drop" else -(-left // world_size)
    stop = num_batches if uneven == "exact" else start + steps * world_size
    return range(start + worker * world_size + rank, stop, world_size * num_workers)
