"""Mixtures of caches' orders, without the caches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.errors import ConfigError
from latentcache.reading.order.epoch import BucketShards, Order
from latentcache.reading.order.mixture import Mixture, shares

caches_of_any_size = st.lists(
    st.lists(st.integers(1, 9), min_size=1, max_size=5).map(
        lambda sizes: [BucketShards(num_samples=np.array(sizes, np.int64), sample_bytes=10)]
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    caches=caches_of_any_size,
    run=st.sampled_from([1, 2, 3]),
    weights=st.none() | st.lists(st.floats(0.4, 2), min_size=4, max_size=4),
    num_batches=st.none() | st.integers(40, 60),
    data=st.data(),
)
def test_a_mixture_takes_each_cache_in_its_own_order(
    caches: list[list[BucketShards]],
    run: int,
    weights: list[float] | None,
    num_batches: int | None,
    data: st.DataObject,
) -> None:
    order = Order(batch_size=2, bucket_run=run, uneven="pad", seed=5)
    options: dict[str, Any] = {"num_batches": num_batches}
    if weights is not None and len(caches) > 1:
        options |= {"weights": weights[: len(caches)], "num_batches": 60}
    epochs = [Mixture(order, caches, epoch, **options) for epoch in range(2)]
    found = [[plan.batch(place) for place in range(len(plan))] for plan in epochs]
    for number, buckets in enumerate(caches):
        own = [(epoch, batch) for cache, epoch, batch in found[0] + found[1] if cache == number]
        last = own[-1][0] if own else 0
        if len(caches) == 1:
            expected = [(e, b) for e in range(last + 1) for b in order.batches(buckets, e)]
            assert own == expected[: len(own)]
        assert [epoch for epoch, _ in own] == sorted(epoch for epoch, _ in own)
        whole = Counter(epoch for epoch, _ in own)
        assert all(whole[epoch] == order.num_batches(buckets) for epoch in range(last))
    for start in range(0, len(found[0]), run):
        step = found[0][start : start + run]
        assert len({(cache, batch.bucket) for cache, _, batch in step}) == 1 or len(caches) == 1
    place = data.draw(st.integers(0, 2 * len(epochs[0]) - 1))
    assert Mixture(order, caches, 0, **options).batch(place) == found[0][place % len(found[0])]


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 1000), st.integers(1, 4)
)
def test_shares_are_the_nearest_whole_numbers(
    weights: list[float], num_batches: int, run: int
) -> None:
    num_runs = num_batches // run
    exact = np.array(weights) / sum(weights) * num_runs
    try:
        counts = shares(num_batches, weights, run)
    except ConfigError:
        assert min(exact) < 1
        return
    assert counts.sum() == num_runs
    assert np.abs(counts - exact).max() < 1


def test_two_caches_alike_do_not_come_in_one_order() -> None:
    """Clips at two sizes, say, whose batches would otherwise follow each other all the time."""
    buckets = [BucketShards(num_samples=np.full(20, 8, np.int64), sample_bytes=10)]
    plan = Mixture(Order(batch_size=2), [buckets, buckets], 0)
    batches = [plan.batch(place) for place in range(len(plan))]
    first, second = ([b for cache, _, b in batches if cache == number] for number in range(2))
    assert len(first) == len(second)
    assert first != second


def test_a_cache_without_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="in an epoch of 10 batches cache 1 gets none"):
        shares(10, [100, 1], 1)
