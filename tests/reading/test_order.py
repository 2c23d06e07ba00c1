"""The order of batches: invariants for any buckets, seeds, ranks and workers."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.errors import ConfigError
from latentcache.reading.order.epoch import Batch, BucketShards, Epoch, Order, places
from latentcache.reading.order.philox import WORDS_A_COUNT, Words


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
    bucket_run=st.sampled_from([1, 1, 2, 3, 8]),
    uneven=st.sampled_from(["drop", "pad", "exact"]),
)


def short_of(order: Order, num_samples: int) -> int:
    """How many of a bucket's samples drop_last leaves out."""
    return num_samples % order.batch_size if order.drop_last else 0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(buckets_of_any_size, orders, st.integers(0, 5))
def test_an_epoch_is_every_sample_once_in_batches_of_one_bucket(
    buckets: list[BucketShards], order: Order, epoch: int
) -> None:
    batches = list(order.batches(buckets, epoch))
    assert len(batches) == order.num_batches(buckets)
    assert batches == list(order.batches(buckets, epoch))
    found = Counter(members(batches))
    assert found.keys() <= set(everything(buckets))
    if order.uneven != "pad":
        assert set(found.values()) <= {1}
    for number, bucket in enumerate(buckets):
        total = int(bucket.num_samples.sum())
        taken = sum(b == number for b, _, _ in found)
        left = short_of(order, total)
        if order.uneven == "drop":
            whole = order.batches_of(bucket) % order.bucket_run
            assert total - left - whole * order.batch_size <= taken <= total - left
        else:
            assert taken == total - left
        sizes = [len(b.rows) for b in batches if b.bucket == number]
        assert all(size == order.batch_size for size in sizes) or (
            not order.drop_last and set(sizes) <= {order.batch_size, total % order.batch_size}
        )


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(buckets_of_any_size, orders, st.data())
def test_a_batch_is_the_same_whatever_was_taken_before(
    buckets: list[BucketShards], order: Order, data: st.DataObject
) -> None:
    whole = list(order.batches(buckets, 2))
    if not whole:
        return
    epoch = Epoch(order, buckets, 2)
    for place in data.draw(st.lists(st.integers(0, 2 * len(whole) - 1), max_size=12)):
        assert epoch.batch(place) == whole[place % len(whole)]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(buckets_of_any_size, orders)
def test_all_batches_of_a_run_share_their_bucket(buckets: list[BucketShards], order: Order) -> None:
    turns = [b.bucket for b in order.batches(buckets, 0)]
    in_runs = len(turns)
    if order.uneven == "exact":
        in_runs -= sum(order.batches_of(b) % order.bucket_run for b in buckets)
    else:
        assert len(turns) % order.bucket_run == 0
    for start in range(0, in_runs, order.bucket_run):
        assert len(set(turns[start : start + order.bucket_run])) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 60),
    st.sampled_from(["drop", "pad", "exact"]),
)
def test_ranks_and_workers_share_the_sequence(
    num: int, world_size: int, num_workers: int, start: int, uneven: Any
) -> None:
    start = min(start, num)
    ranks = [
        {"rank": rank, "world_size": world_size, "start": start, "uneven": uneven}
        for rank in range(world_size)
    ]
    by_rank = [list(places(num, **rank)) for rank in ranks]
    for rank, expected in zip(ranks, by_rank, strict=True):
        workers = [
            places(num, **rank, worker=worker, num_workers=num_workers)
            for worker in range(num_workers)
        ]
        # A DataLoader takes one batch of each worker in turn.
        turns = itertools.chain.from_iterable(itertools.zip_longest(*workers))
        assert [place for place in turns if place is not None] == expected
    steps = itertools.zip_longest(*by_rank)
    together = [place for step in steps for place in step if place is not None]
    assert together == list(range(start, start + len(together)))
    lengths = {len(rank) for rank in by_rank}
    if uneven == "drop":
        assert len(lengths) == 1
        assert 0 <= num - start - len(together) < world_size
    elif uneven == "pad":
        assert len(lengths) == 1
        assert 0 <= len(together) - (num - start) < world_size
    else:
        assert max(lengths) - min(lengths) <= 1
        assert len(together) == num - start


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    buckets_of_any_size,
    orders,
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=5),
)
def test_a_chain_of_world_sizes_goes_through_the_same_sequence(
    buckets: list[BucketShards], order: Order, chain: list[tuple[int, int]]
) -> None:
    """Each link: so many ranks take so many steps; the last one goes on to the end."""
    epoch = Epoch(order, buckets, 0)
    taken: list[Batch] = []
    start = 0
    for n, (world_size, steps) in enumerate(chain):
        ranks = [
            places(len(epoch), start=start, rank=rank, world_size=world_size, uneven=order.uneven)
            for rank in range(world_size)
        ]
        ranks = ranks if n == len(chain) - 1 else [rank[:steps] for rank in ranks]
        for step in itertools.zip_longest(*ranks):
            taken += [epoch.batch(place) for place in step if place is not None]
        start += max(map(len, ranks)) * world_size
    whole = list(order.batches(buckets, 0))
    if order.uneven == "pad":
        assert taken[: len(whole)] == whole
    else:
        assert taken == whole[: len(taken)]
    if order.uneven == "exact":
        assert len(taken) == len(whole)


def test_every_pair_of_world_sizes_and_every_stopping_point() -> None:
    buckets = make([[5, 3, 7], [2, 2]])
    order = Order(batch_size=2, seed=3, uneven="exact")
    whole = list(order.batches(buckets, 1))
    epoch = Epoch(order, buckets, 1)
    for before, after in itertools.product(range(1, 9), repeat=2):
        for steps in range(-(-len(whole) // before) + 1):
            start = min(steps * before, len(whole))
            found = [whole[place] for place in range(start)]
            ranks = [
                places(len(whole), start=start, rank=r, world_size=after, uneven="exact")
                for r in range(after)
            ]
            for step in itertools.zip_longest(*ranks):
                found += [epoch.batch(place) for place in step if place is not None]
            assert found == whole


def test_ranks_read_shards_of_their_own_in_runs() -> None:
    buckets = make([[32] * 100, [24] * 50])
    order = Order(bucket_run=8, pool_bytes=20 * 32 * 10)
    ranks: dict[tuple[int, int], set[int]] = {}
    for place, batch in enumerate(order.batches(buckets, 0)):
        for shard in batch.shards:
            ranks.setdefault((batch.bucket, shard), set()).add(place % 8)
    shared = [shard for shard, found in ranks.items() if len(found) > 1]
    assert len(ranks) == 150
    assert len(shared) <= 2 * (8 - 1)


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
    buckets = make([[3, 20] * 500, [7] * 300, [1]])
    digest = hashlib.sha256()
    for run in (1, 4):
        order = Order(seed=7, pool_bytes=3000, bucket_run=run)
        for batch in order.batches(buckets, 1):
            digest.update(repr((batch.bucket, batch.shards, batch.rows)).encode())
    assert digest.hexdigest() == GOLDEN


GOLDEN = "7dc3f93851c081d312a8cd7f705788a3c2a8843c34b683e48e293c7e9a92dc9f"


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
    assert abs(np.mean(distinct[80:220]) - expected) < 1
    assert np.mean(distinct[:10]) > 0.75 * expected


@pytest.mark.slow
def test_a_pool_that_holds_everything_shuffles_everything() -> None:
    buckets = make([[4] * 16])
    firsts = Counter(
        members(Order(seed=seed, batch_size=1).batches(buckets, 0))[0] for seed in range(640)
    )
    assert len(firsts) == 64
    assert max(firsts.values()) < 30  # ten are expected of each


def test_a_pool_that_holds_everything_scatters_every_shard() -> None:
    buckets = make([[2] * 500])
    taken = members(Order(batch_size=1).batches(buckets, 0))
    places_of: dict[int, list[int]] = {}
    for place, (_, shard, _) in enumerate(taken):
        places_of.setdefault(shard, []).append(place)
    apart = [second - first for first, second in places_of.values()]
    # Two random places of 1000 are 333 apart on average, the mean of 500 such +- 11.
    assert abs(np.mean(apart) - 333) < 4 * 11


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**70), st.integers(0, 50), st.integers(0, 50))
def test_words_follow_from_their_place_alone(seed: int, start: int, num: int) -> None:
    words = Words(seed, 3)
    assert words(start, start + num).tolist() == words(0, start + num)[start:].tolist()
    assert len(set(words(0, 20 * WORDS_A_COUNT).tolist())) == 20 * WORDS_A_COUNT


def test_a_place_a_million_batches_on_costs_no_more_memory() -> None:
    buckets = make([[64] * 150_000])  # ten million samples
    tracemalloc.start()
    next(Order(pool_bytes=128 * 64 * 10).batches(buckets, 0, start=1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_samples_are_as_likely_at_any_place(number: int) -> None:
    """Shards are met in any order, and within the window's reach: no row and no shard stands out."""
    buckets = make([[10] * 20])
    pool_bytes = (1, 6 * 100, 10**9)[number]
    mean = np.zeros((20, 10))
    for seed in range(150):
        order = Order(seed=seed, batch_size=1, pool_bytes=pool_bytes)
        for place, (_, shard, row) in enumerate(members(order.batches(buckets, 0))):
            mean[shard, row] += place / 150
    # A place is even over 0..199: the mean of 150 has a standard deviation of 4.7.
    assert np.abs(mean - 99.5).max() < 5 * 4.7


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"batch_size": 0}, {"pool_bytes": 0}, {"bucket_run": 0}]
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be a whole number"):
        Order(**wrong)


def test_an_unknown_way_with_uneven_ranks_is_refused() -> None:
    wrong: Any = "repeat"
    with pytest.raises(ConfigError, match="uneven 'repeat' is not one of drop, pad, exact"):
        Order(uneven=wrong)


def test_batches_are_plain_values() -> None:
    batch = next(Order().batches(make([[2]]), 0))
    assert isinstance(batch, Batch)
    assert all(type(n) is int for n in (*batch.shards, *batch.rows, batch.bucket))
