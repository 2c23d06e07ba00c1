"""The order of batches from a planned pool of open shards, and its striping over ranks and workers.

Samples of a batch share a bucket. Shuffled: a bucket's shards are opened in random order, as many
at a time as its share of `pool_bytes` holds; each sample comes from one of the open shards, all
equally likely, until none is left to open; the rest is permuted. Batches of the buckets are
interleaved in proportion. 64 samples from 128 open shards meet 51 of them, on average.

All randomness comes from raw Philox words, which numpy keeps the same between versions, as it does
not keep what its Generator makes of them.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentcache.errors import ConfigError

Int64 = npt.NDArray[np.int64]

#: Raw words drawn at a time.
BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class BucketShards:
    """A bucket: num_samples, int64, of each of its shards, and the bytes of a sample in memory."""

    num_samples: Int64
    sample_bytes: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket. shards, rows: which shard, and which of its samples; same length."""

    bucket: int
    shards: Sequence[int]
    rows: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the order of an epoch follows from. seed >= 0; pool_bytes is shared by the buckets."""

    seed: int = 0
    batch_size: int = 8
    shuffle: bool = True
    drop_last: bool = False
    pool_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.seed < 0 or self.batch_size < 1 or self.pool_bytes < 1:
            raise ConfigError(
                f"seed {self.seed}, batch_size {self.batch_size}, pool_bytes {self.pool_bytes}: "
                "the seed is at least 0, the others at least 1"
            )

    def num_batches(self, buckets: Sequence[BucketShards]) -> int:
        """Return the number of batches of an epoch, of all ranks together."""
        return sum(self._batches_of(bucket) for bucket in buckets)

    def _batches_of(self, bucket: BucketShards) -> int:
        total = int(bucket.num_samples.sum())
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def batches(self, buckets: Sequence[BucketShards], epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch in their canonical order.

        Every sample once; with drop_last, a bucket's last short batch is left out. Holds the open
        shards' samples and one number a shard.
        """
        samples = [
            self._samples(buckets, number, Words(self.seed, epoch, number, 0))
            for number in range(len(buckets))
        ]
        for number in self._turns(buckets, epoch):
            taken = list(itertools.islice(samples[number], self.batch_size))
            shards, rows = zip(*taken, strict=True)
            yield Batch(bucket=number, shards=shards, rows=rows)

    def _turns(self, buckets: Sequence[BucketShards], epoch: int) -> Iterator[int]:
        """Yield the bucket of each batch: one after the other, or in proportion where shuffled.

        The k-th of n batches of a bucket comes at a random time in [k/n, (k+1)/n).
        """
        counts = [self._batches_of(bucket) for bucket in buckets]
        if not self.shuffle:
            yield from (number for number, count in enumerate(counts) for _ in range(count))
            return
        times = [
            _times(number, count, Words(self.seed, epoch, number, 1))
            for number, count in enumerate(counts)
        ]
        yield from (number for _, number in heapq.merge(*times))

    def _samples(
        self, buckets: Sequence[BucketShards], number: int, words: Words
    ) -> Iterator[tuple[int, int]]:
        bucket = buckets[number]
        if not self.shuffle:
            return _in_order(bucket.num_samples)
        all_bytes = sum(int(b.num_samples.sum()) * b.sample_bytes for b in buckets)
        own_bytes = int(bucket.num_samples.sum()) * bucket.sample_bytes
        share = self.pool_bytes * own_bytes // max(all_bytes, 1)
        return _from_pool(bucket.num_samples, share // max(bucket.sample_bytes, 1), words)


class Words:
    """Random numbers of one purpose: raw 64-bit Philox words of (seed, epoch, bucket, purpose)."""

    def __init__(self, *key: int) -> None:
        self._philox = np.random.Philox(np.random.SeedSequence(key))
        self._block: list[int] = []

    def below(self, n: int) -> int:
        """Return a number in [0, n), each as likely as the others up to 2**-53."""
        if not self._block:
            self._block = self._philox.random_raw(BLOCK).tolist()
        return (self._block.pop() * n) >> 64

    def permutation(self, n: int) -> list[int]:
        """Return the numbers 0..n-1 in random order."""
        order: list[int] = np.argsort(self._philox.random_raw(n), kind="stable").tolist()
        return order


def _times(number: int, count: int, words: Words) -> Iterator[tuple[float, int]]:
    for k in range(count):
        yield (k + words.below(2**32) / 2**32) / count, number


def _in_order(num_samples: Int64) -> Iterator[tuple[int, int]]:
    for shard, num in enumerate(num_samples.tolist()):
        for row in range(num):
            yield shard, row


def _from_pool(num_samples: Int64, pool_samples: int, words: Words) -> Iterator[tuple[int, int]]:
    """Yield (shard, row) of each sample once, from open shards of `pool_samples` in all, or one."""
    sizes = num_samples.tolist()
    waiting = [shard for shard in words.permutation(len(sizes)) if sizes[shard]]
    open_: list[tuple[int, list[int]]] = []  # shard, its samples that are left
    held = 0  # samples that the open shards have in all, those taken included
    while True:
        while waiting and (not open_ or held + sizes[waiting[-1]] <= pool_samples):
            shard = waiting.pop()
            open_.append((shard, words.permutation(sizes[shard])))
            held += sizes[shard]
        if not waiting:
            break
        n = words.below(len(open_))
        shard, rows = open_[n]
        yield shard, rows.pop()
        if not rows:
            open_[n] = open_[-1]
            open_.pop()
            held -= sizes[shard]
    rest = [(shard, row) for shard, rows in open_ for row in rows]
    yield from (rest[n] for n in words.permutation(len(rest)))


def stripe(
    batches: Iterator[Batch],
    num_batches: int,
    *,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    worker: int = 0,
    num_workers: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of one worker of one rank, from batch `start` of all on.

    Rank r takes start + r, start + r + world_size, ... and its worker w of k every k-th of those,
    from the w-th on: a DataLoader, which takes from its workers in turn, restores the rank's order
    for any k. Every rank gets as many batches: up to world_size - 1 at the end go to none.
    """
    steps = num_steps(num_batches, start=start, world_size=world_size)
    step = world_size * num_workers
    return itertools.islice(
        batches, start + worker * world_size + rank, start + steps * world_size, step
    )


def num_steps(num_batches: int, *, start: int = 0, world_size: int = 1) -> int:
    """Return how many batches each rank gets."""
    return max(0, num_batches - start) // world_size
