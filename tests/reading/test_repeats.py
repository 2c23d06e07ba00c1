"""How often clips of weights come: counts by epoch, without caches."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core.records import MAX_WEIGHT
from latentcache.errors import ConfigError
from latentcache.reading.order.epoch import BucketShards, Order
from latentcache.reading.order.mixture import Mixture
from latentcache.reading.order.repeats import Repeats

weights = st.lists(
    st.integers(0, 5).map(float) | st.floats(0, 4) | st.just(float(MAX_WEIGHT)),
    min_size=1,
    max_size=9,
)


@pytest.mark.slow
@given(given=weights, epoch=st.integers(0, 1 << 20), data=st.data())
def test_each_clip_comes_its_weight_on_average_and_never_off_by_one(
    given: list[float], epoch: int, data: st.DataObject
) -> None:
    drawn = st.lists(st.integers(0, 2**32 - 1), min_size=len(given), max_size=len(given))
    repeats = Repeats(np.array(given), np.array(data.draw(drawn), np.uint32))
    for clip, weight in enumerate(given):
        exact = Fraction(round(weight * 2**32), 2**32)
        assert abs(int(repeats.before(epoch)[clip]) - exact * epoch) < 1
        assert int(repeats.counts(epoch)[clip]) in {exact.__floor__(), exact.__ceil__()}


def test_the_samples_of_a_clip_have_visits_that_go_on_over_epochs() -> None:
    repeats = Repeats(np.array([2.5, 0, 1, 0.25]), np.array([0, 0, 0, 1 << 30], np.uint32))
    visits: dict[int, list[int]] = {n: [] for n in range(4)}
    for epoch in range(8):
        num = int(repeats.sums(epoch, np.array([0, 4]))[0])
        clips, seen = repeats.samples(epoch, 0, 4, np.arange(num))
        assert clips.tolist() == sorted(clips.tolist())
        for clip, visit in zip(clips.tolist(), seen.tolist(), strict=True):
            visits[clip].append(visit)
    assert visits == {0: [*range(20)], 1: [], 2: [*range(8)], 3: [0, 1]}


def test_a_part_of_the_clips_counts_as_it_does_among_all() -> None:
    rng = np.random.default_rng(0)
    repeats = Repeats(rng.uniform(0, 3, 20), rng.integers(0, 2**32, 20, np.uint32))
    starts = np.array([0, 7, 7, 20])
    sums = repeats.sums(5, starts)
    assert sums.tolist() == [
        int(repeats.counts(5, a, b).sum()) for a, b in [(0, 7), (7, 7), (7, 20)]
    ]
    clips, _ = repeats.samples(5, 7, 20, np.arange(sums[2]))
    assert np.bincount(clips, minlength=13).tolist() == repeats.counts(5)[7:].tolist()


def changing(*totals: int) -> list[list[BucketShards]]:
    return [[BucketShards(num_samples=np.array([n]), sample_bytes=1)] for n in totals]


def test_a_mixture_goes_through_own_epochs_of_any_lengths_without_gap() -> None:
    order, epochs = Order(batch_size=1), changing(3, 0, 5, 2) * 20
    steady = [BucketShards(num_samples=np.array([4]), sample_bytes=1)]
    found: list[tuple[int, int]] = []
    for epoch in range(6):
        plan = Mixture(
            order, [epochs[0], steady], epoch, num_batches=8, varying=[epochs.__getitem__, None]
        )
        batches = [plan.batch(place) for place in range(len(plan))]
        found += [(own, batch.rows[0]) for cache, own, batch in batches if cache == 0]
    expected = [
        (own, batch.rows[0]) for own in range(12) for batch in order.batches(epochs[own], own)
    ]
    assert found == expected[: len(found)]
    assert len({own for own, _ in found}) > 2


def test_a_cache_none_of_whose_epochs_has_a_batch_is_refused_and_not_searched_for_ever() -> None:
    full, empty = changing(3, 0)
    plan = Mixture(Order(batch_size=1), [full], 0, num_batches=2, varying=[lambda _: empty])
    with pytest.raises(ConfigError, match="hold no batch"):
        plan.batch(0)
