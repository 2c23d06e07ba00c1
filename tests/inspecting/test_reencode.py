"""Clips that are encoded again: which are drawn, and how far two encodings are apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from latentcache.core.dtypes import Array
from latentcache.core.records import ShardId
from latentcache.inspecting.reencode import TOLERANCE, Drawn, Repeated, choose, difference, repeat
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.planned import planned_from

#: Of each bucket, the ok clips of its shards.
COUNTS = st.dictionaries(
    st.sampled_from(["5x8x8", "5x8x16", "9x8x8"]),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
)


def snapshot(counts: dict[str, list[int]]) -> list[dict[str, object]]:
    return [
        {"bucket": bucket, "shard": 10 * n, "num_ok": num_ok}
        for bucket, shards in counts.items()
        for n, num_ok in enumerate(shards)
    ]


@given(COUNTS, st.integers(0, 40), st.integers(0, 2**32))
def test_ok_clips_are_drawn_once_each_and_evenly_by_bucket(
    counts: dict[str, list[int]], num_clips: int, seed: int
) -> None:
    rows = snapshot(counts)
    drawn = choose(rows, num_clips, seed)
    there = {
        Drawn(shard=ShardId(bucket, 10 * n), position=position)
        for bucket, shards in counts.items()
        for n, num_ok in enumerate(shards)
        for position in range(num_ok)
    }
    assert len(set(drawn)) == len(drawn) == min(num_clips, len(there))
    assert set(drawn) <= there
    of = Counter(dict.fromkeys(counts, 0))
    of.update(place.shard.bucket for place in drawn)
    unfinished = [of[bucket] for bucket, shards in counts.items() if of[bucket] < sum(shards)]
    assert not unfinished or max(of.values(), default=0) - min(unfinished) <= 1
    assert drawn == choose(rows[::-1], num_clips, seed)


def test_another_seed_draws_other_clips() -> None:
    rows = snapshot({"5x8x8": [100, 100]})
    assert choose(rows, 10, 0) != choose(rows, 10, 1)


def test_far_more_clips_than_there_are_give_all() -> None:
    assert len(choose(snapshot({"5x8x8": [3], "9x8x8": [2]}), 10**12, 0)) == 5
    assert choose([], 10**12, 0) == []


def array(*values: float, dtype: object = np.float32) -> Array:
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("stored", "again", "expected"),
    [
        (array(3, 4), array(3, 4), 0.0),
        (array(3, 4), array(3, 3), 0.2),
        (array(3, 4), array(0, 0), 1.0),
        (array(0, 0), array(0, 0), 0.0),
        (array(0, 0), array(0, 1), float("inf")),
        (array(1, 2, 3, 4, dtype=np.int32), array(1, 0, 3, 0, dtype=np.int32), 0.5),
        (array(3, 4, dtype=bfloat16), array(3, 3, dtype=bfloat16), 0.2),
        (array(60000, dtype=np.float16), array(-60000, dtype=np.float16), 2.0),
        (array(float("nan")), array(float("nan")), 0.0),
    ],
)
def test_a_difference_is_in_parts_of_what_is_stored(
    stored: Array, again: Array, expected: float
) -> None:
    assert difference(stored, again) == pytest.approx(expected)


@pytest.mark.parametrize("again", [array(3, np.nan), array(3, np.inf)])
def test_what_is_not_finite_is_not_what_is_stored(again: Array) -> None:
    place = Drawn(shard=ShardId("5x8x8", 0), position=0)
    assert not Repeated(place=place, key="k", difference=difference(array(3, 4), again)).ok


def test_a_source_that_is_gone_says_nothing_about_the_cache() -> None:
    place = Drawn(shard=ShardId("5x8x8", 0), position=0)
    assert Repeated(place=place, key="k", problem="the file is not there").ok
    assert Repeated(place=place, key="k", difference=TOLERANCE).ok
    assert not Repeated(place=place, key="k", difference=2 * TOLERANCE).ok


@pytest.mark.slow
def test_a_clip_of_a_run_encodes_to_what_is_stored_while_its_source_is_there(
    tmp_path: Path,
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    assert run_inline("precompute", config)[0] == 3
    planned = planned_from(config)
    bucket = next(name for name in planned.manifest.layouts() if name.startswith("5x"))
    first = Drawn(shard=ShardId(bucket, 0), position=0)
    device = torch.device("cpu")
    (same,) = repeat(planned, [first], device)
    assert (same.place, same.difference, same.problem) == (first, 0.0, None)
    clip = planned.plan.shard(first.shard).clips[0]
    assert same.key == clip.key
    (tmp_path / "away").mkdir()
    Path(clip.url).rename(tmp_path / "away" / "v.mp4")
    (gone,) = repeat(planned, [first], device)
    assert gone.ok
    assert gone.problem == f"no such file: {clip.url}"
