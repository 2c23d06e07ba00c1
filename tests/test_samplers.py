"""The order of batches: invariants for any buckets, seeds, ranks and workers."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.errors import ConfigError
from latentcache.samplers.pool import Batch, BucketShards, Order, Words, num_steps, stripe


def make(sizes: list[list[int]], sample_bytes: int = 10) -> list[BucketShards]:
    return [
        BucketShards(num_samples=np.array(s, np.int64), sample_bytes=sample_bytes) for s in sizes
    ]


def members(batches: Any) -> list[tuple[int, int, int]]:
    return [(b.bucket, s, r) for b in batches for s, r in zip(b.shards, b.rows, strict=True)]


def everything(buckets: list[BucketShards]) -> list[tuple[int, int, int]]:
    return [
        (b, s, r)
        for b, bucket in enumerate(buckets)
        for s, num in enumerate(bucket.num_samples.tolist())
        for r in range(num)
    ]


buckets_of_any_size = st.lists(
    st.lists(st.integers(0, 7), min_size=1, max_size=9), min_size=1, max_size=4
).map(make)
orders = st.builds(
    Order,
    seed=st.integers(0, 2**70),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    pool_bytes=st.sampled_from([1, 100, 300, 10**9]),
)


@settings(max_examples=150, deadline=None)
@given(buckets_of_any_size, orders, st.integers(0, 5))
def test_an_epoch_is_every_sample_once_in_batches_of_one_bucket(
    buckets: list[BucketShards], order: Order, epoch: int
) -> None:
    batches = list(order.batches(buckets, epoch))
    assert len(batches) == order.num_batches(buckets)
    found = members(batches)
    assert len(set(found)) == len(found)
    if order.drop_last:
        assert all(len(b.rows) == order.batch_size for b in batches)
        left = Counter(b for b, _, _ in everything(buckets)) - Counter(b for b, _, _ in found)
        assert all(num < order.batch_size for num in left.values())
    else:
        assert sorted(found) == everything(buckets)
        short = Counter(b.bucket for b in batches if len(b.rows) < order.batch_size)
        assert all(num == 1 for num in short.values())
    assert batches == list(order.batches(buckets, epoch))


@settings(max_examples=100, deadline=None)
@given(
    buckets_of_any_size,
    orders,
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 8),
)
def test_ranks_and_workers_share_the_sequence(
    buckets: list[BucketShards], order: Order, world_size: int, num_workers: int, start: int
) -> None:
    whole = list(order.batches(buckets, 0))
    steps = num_steps(len(whole), start=start, world_size=world_size)
    by_rank = []
    for rank in range(world_size):
        workers = [
            list(
                stripe(
                    order.batches(buckets, 0),
                    len(whole),
                    start=start,
                    rank=rank,
                    world_size=world_size,
                    worker=worker,
                    num_workers=num_workers,
                )
            )
            for worker in range(num_workers)
        ]
        # A DataLoader takes one batch of each worker in turn.
        turns = itertools.chain.from_iterable(itertools.zip_longest(*workers))
        by_rank.append([batch for batch in turns if batch is not None])
        assert len(by_rank[-1]) == steps
    together = [batch for step in zip(*by_rank, strict=True) for batch in step]
    assert together == whole[start : start + steps * world_size]
    assert len(whole[start:]) - len(together) < world_size


def test_storage_order_without_shuffling() -> None:
    buckets = make([[2, 0, 3], [1]])
    batches = list(Order(shuffle=False, batch_size=2).batches(buckets, 3))
    assert members(batches) == everything(buckets)
    assert [len(b.rows) for b in batches] == [2, 2, 1, 1]


def test_seeds_and_epochs_give_other_orders() -> None:
    buckets = make([[8] * 8])
    seen = {
        tuple(members(Order(seed=seed).batches(buckets, epoch)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(seen) == 16


def test_the_order_is_the_same_in_every_version() -> None:
    """Fails where a change of numpy or of this package moves the samples of a run that goes on."""
    buckets = make([[3, 2], [2]])
    batches = list(Order(seed=7, batch_size=2, pool_bytes=35).batches(buckets, 1))
    assert [(b.bucket, b.shards, b.rows) for b in batches] == EXPECTED


EXPECTED: list[Any] = [
    (0, (0, 0), (0, 1)),
    (0, (0, 1), (2, 0)),
    (0, (1,), (1,)),
    (1, (0, 0), (0, 1)),
]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_open_shards_are_bounded_in_bytes(pool_samples: int, seed: int) -> None:
    buckets = make([[5] * 30])
    order = Order(seed=seed, batch_size=1, pool_bytes=pool_samples * 10)
    left = dict.fromkeys(range(30), 5)
    opened: set[int] = set()
    for batch in order.batches(buckets, 0):
        (shard,) = batch.shards
        opened.add(shard)
        left[shard] -= 1
        open_now = [s for s in opened if left[s] > 0]
        assert len(open_now) <= max(1, pool_samples // 5)


def test_a_batch_meets_as_many_shards_as_the_pool_allows() -> None:
    buckets = make([[32] * 600])
    order = Order(batch_size=64, pool_bytes=128 * 32 * 10)
    distinct = [len(set(b.shards)) for b in order.batches(buckets, 0)]
    expected = 128 * (1 - (1 - 1 / 128) ** 64)
    assert abs(np.mean(distinct[:200]) - expected) < 1


def test_a_pool_that_holds_everything_shuffles_everything() -> None:
    buckets = make([[4] * 16])
    firsts = Counter(
        members(Order(seed=seed, batch_size=1).batches(buckets, 0))[0] for seed in range(640)
    )
    assert len(firsts) == 64
    assert max(firsts.values()) < 30  # ten are expected of each


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_buckets_come_in_proportion_all_the_time(seed: int) -> None:
    buckets = make([[100] * 6, [100] * 3, [100]])
    turns = [b.bucket for b in Order(seed=seed, batch_size=10).batches(buckets, 0)]
    for end in range(1, len(turns) + 1):
        for bucket, share in enumerate((0.6, 0.3, 0.1)):
            assert abs(turns[:end].count(bucket) - share * end) < 3


def test_memory_does_not_grow_with_the_samples() -> None:
    buckets = make([[4096] * 2000])  # eight million samples
    order = Order(pool_bytes=10 * 4096 * 10)
    tracemalloc.start()
    batches = list(itertools.islice(order.batches(buckets, 0), 100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batches) == 100
    assert peak < 8 << 20


def test_numbers_below_n_are_even() -> None:
    words = Words(1, 2, 3)
    counts = Counter(words.below(5) for _ in range(5000))
    assert set(counts) == set(range(5))
    assert all(abs(num - 1000) < 150 for num in counts.values())


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"batch_size": 0}, {"pool_bytes": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least"):
        Order(**wrong)


def test_batches_are_plain_values() -> None:
    batch = next(Order().batches(make([[2]]), 0))
    assert isinstance(batch, Batch)
    assert all(type(n) is int for n in (*batch.shards, *batch.rows, batch.bucket))
