"""What a loader takes: samples by their columns, first frames, shares of ranks, several caches."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.core import posterior
from latentcache.core.records import Bucket
from latentcache.errors import CacheError, ConfigError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.fields import cache_of, grow
from tests.tools.synthetic import Synthetic, write_cache

FAILED = [("5x32x32", 1), ("1x32x48", 4)]
LONG = {"1x32x48": 3, "17x32x32": 9, "9x32x32": 5}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("cache")), failed=FAILED)


@pytest.fixture(scope="module")
def cache(written: Synthetic) -> Cache:
    return open_cache(written.url)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("long")), buckets=LONG)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Cache]:
    small = write_cache(str(tmp_path_factory.mktemp("small")), buckets={"5x32x32": 6})
    large = write_cache(str(tmp_path_factory.mktemp("large")), buckets={"5x32x32": 18}, seed=1)
    return [open_cache(small.url), open_cache(large.url)]


def flat(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def names(batches: Any) -> list[tuple[int, tuple[str, ...]]]:
    return [(batch["cache"], tuple(batch["key"])) for batch in batches]


# columns that only some steps have kept


@pytest.mark.parametrize("bare", [1, 2])
def test_a_column_that_only_some_clips_have_is_null_elsewhere(bare: int, tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), buckets={"5x32x32": 8}, first_shards=1, bare=bare)
    scores = {f"5x32x32-{n:04d}": None if (n < 4) == (bare == 1) else n for n in range(8)}
    for options in ({}, {"columns": ["key", "score"]}):
        found: dict[str, Any] = {}
        for batch in LatentLoader(written.url, 4, shuffle=False, **options):
            found.update(zip(batch["key"], batch["score"], strict=True))
        assert found == scores
    for where, holds in (
        ("score is null", lambda score: score is None),
        ("score is not null", lambda score: score is not None),
        ("score >= 2", lambda score: score is not None and score >= 2),
        (pc.field("score") < 6, lambda score: score is not None and score < 6),
    ):
        chosen = flat(LatentLoader(written.url, 1, shuffle=False, where=where))
        assert chosen == [key for key, score in scores.items() if holds(score)]


def test_a_column_that_the_corpus_has_lost_chooses_clips(tmp_path: Path) -> None:
    planned = cache_of(tmp_path, [f"caption {n}" for n in range(3)], texts=[["a"]] * 3)
    url = grow(planned, ["new"] * 2, lost=["texts"]).storage.url
    known = flat(LatentLoader(url, 1, where="texts is not null"))
    assert {key[0] for key in known} == {"v"}
    new = list(LatentLoader(url, 1, where="texts is null"))
    assert {key[0] for key in flat(new)} == {"g"}
    assert [batch["texts"] for batch in new] == [[None]] * len(new)


def test_a_column_of_whole_numbers_and_floats_is_one_of_floats(tmp_path: Path) -> None:
    score = {1: pa.int64(), 2: pa.float64()}
    buckets = {"5x32x32": 8}
    written = write_cache(str(tmp_path), buckets=buckets, first_shards=1, score=score)
    chosen = flat(LatentLoader(written.url, 1, shuffle=False, where="score in (1, 2.5, 6)"))
    assert chosen == ["5x32x32-0001", "5x32x32-0006"]
    with pytest.raises(ConfigError, match=r"none of the 8 ok clips.*score is from 0 to 7"):
        LatentLoader(written.url, where="score > 1000")


def test_a_condition_that_nothing_fits_names_types_that_do_not_go_together(tmp_path: Path) -> None:
    score = {1: pa.float64(), 2: pa.list_(pa.float64())}
    make: Any = {"buckets": {"5x32x32": 8}, "first_shards": 1, "score": score}
    written = write_cache(str(tmp_path), **make)
    with pytest.raises(ConfigError, match=r"score holds double and list<"):
        LatentLoader(written.url, where="score is null and frames > 9")


# where


@pytest.mark.slow
def test_a_condition_that_keeps_nothing_says_what_there_is(cache: Cache) -> None:
    said = r"none of the 14 ok clips fits the condition score > 99 and caption = ''\. There, "
    said += r"caption is 'caption of \d', 'caption of \d', .* and others; score is from 0 to 10\."
    with pytest.raises(ConfigError, match=said):
        LatentLoader(cache, where="score > 99 and caption = ''")
    with pytest.raises(ConfigError, match=r"bucket is '1x32x48', '5x32x32'\."):
        LatentLoader(cache, where=[("bucket", "=", "17x32x32")])


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(low=st.integers(-1, 11), bucket=st.sampled_from(["5x32x32", "1x32x48", None]))
def test_where_keeps_what_a_table_of_the_cache_keeps(
    low: int, bucket: str | None, cache: Cache
) -> None:
    where = pc.field("score") > low
    if bucket is not None:
        where &= pc.field("bucket") == bucket
    expected = cache.table().filter(where & (pc.field("status") == "ok"))["key"].to_pylist()
    if expected:
        assert sorted(flat(LatentLoader(cache, batch_size=2, where=where))) == sorted(expected)
    else:
        with pytest.raises(ConfigError, match=r"no clip of .* is chosen"):
            LatentLoader(cache, batch_size=2, where=where)


def test_where_reads_the_right_latents(written: Synthetic) -> None:
    loader = LatentLoader(written.url, normalise=False, where=[("score", ">", 3), ("row", "<", 2)])
    for batch in loader:
        assert all(score > 3 for score in batch["score"])
        expected = np.stack([written.arrays[key] for key in batch["key"]]).astype(np.float32)
        np.testing.assert_array_equal(batch["latents"].float().numpy(), expected)
    assert loader.stats.num_samples > 0


def test_a_null_is_not_chosen(cache: Cache) -> None:
    with_caption = flat(LatentLoader(cache, where=pc.field("caption") != "none"))
    assert 0 < len(with_caption) < len(cache)
    assert all(cache.sample(key)["caption"] is not None for key in with_caption)


@pytest.mark.parametrize(
    "where", [pc.field("scores") > 1, pc.field("score") > "a", [("a", ">", 1)]]
)
def test_a_filter_that_cannot_be_evaluated_names_the_columns(where: Any, cache: Cache) -> None:
    with pytest.raises(ConfigError, match=r"where: .* cannot be evaluated: .*columns.*score"):
        LatentLoader(cache, where=where)


def test_the_state_knows_what_was_chosen(cache: Cache) -> None:
    state = LatentLoader(cache, where=pc.field("score") > 2).state_dict()
    LatentLoader(cache, where=[("score", ">", 2)]).load_state_dict(state)
    for other in (None, pc.field("score") > 3):
        with pytest.raises(CacheError, match=r"where: .* in the state"):
            LatentLoader(cache, where=other).load_state_dict(state)


def test_columns_are_those_asked_for(cache: Cache) -> None:
    for batch in LatentLoader(cache, columns=["source", "fps"]):
        assert list(batch) == ["latents", "source", "fps", "bucket"]
    for batch in LatentLoader(cache, columns=[]):
        assert list(batch) == ["latents", "bucket"]
    with pytest.raises(ConfigError, match=r"no 'scor'\. Did you mean 'score'"):
        LatentLoader(cache, columns=["scor"])


# frames


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["mean", "moments"])
@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 99])
def test_frames_are_the_first_ones(frames: int, stored: str, tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets=LONG, stored=stored)
    loader = LatentLoader(
        cache.url, frames=frames, posterior="mode", normalise=False, dtype=torch.float32
    )
    for batch in loader:
        num = cache.manifest.spec.latent_shape(
            min(frames, Bucket.parse(batch["bucket"]).frames), 32, 32
        )[1]
        whole = np.stack([cache.arrays[key] for key in batch["key"]]).astype(np.float32)
        assert torch.equal(batch["latents"], torch.from_numpy(whole)[:, :4, :num])
        assert batch["latents"].is_contiguous()


@pytest.mark.slow
def test_frames_of_normalised_and_of_drawn_latents(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets=LONG, stored="moments", dtype="float32")
    spec = cache.manifest.spec
    for batch in LatentLoader(cache.url, frames=5, seed=4):
        num = min(2, spec.latent_shape(Bucket.parse(batch["bucket"]).frames, 32, 32)[1])
        moments = np.stack([cache.arrays[key] for key in batch["key"]])[:, :, :num]
        seeds = [posterior.sample_seed(4, 0, key) for key in batch["key"]]
        drawn = posterior.sample(*posterior.split(torch.from_numpy(moments)), seeds)
        expected = posterior.normalise(drawn, spec.normaliser)
        torch.testing.assert_close(batch["latents"], expected)


def test_frames_that_end_amid_a_latent_are_refused(long: Synthetic) -> None:
    with pytest.raises(ConfigError, match=r"frames 7: no latent frame of bucket .* Use 5 or 9"):
        LatentLoader(long.url, frames=7)


@pytest.mark.parametrize("exactness", ["exact", "approximate"])
def test_latents_that_look_ahead_are_not_cut(exactness: str, tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets=LONG, exactness=exactness)
    with pytest.raises(
        ConfigError, match=rf"frames 9: .* depend on the later ones \({exactness}\)"
    ):
        LatentLoader(cache.url, frames=9)
    assert len(LatentLoader(cache.url, frames=17)) > 0  # nothing is cut


@pytest.mark.slow
def test_frames_of_ids(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets=LONG, dtype="uint16", stored="ids")
    for batch in LatentLoader(cache.url, frames=5):
        whole = np.stack([cache.arrays[key] for key in batch["key"]])
        np.testing.assert_array_equal(batch["latents"].numpy(), whole[:, :2])


# Ranks


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    world_size=st.integers(1, 6),
    batch_size=st.integers(1, 3),
    uneven=st.sampled_from(["drop", "pad", "exact"]),
)
def test_ranks_share_an_epoch(world_size: int, batch_size: int, uneven: Any, cache: Cache) -> None:
    def make(rank: int, world_size: int) -> LatentLoader:
        return LatentLoader(
            cache, batch_size=batch_size, rank=rank, world_size=world_size, uneven=uneven
        )

    loaders = [make(rank, world_size) for rank in range(world_size)]
    parts = [[tuple(b["key"]) for b in loader] for loader in loaders]
    assert [len(part) for part in parts] == [len(loader) for loader in loaders]
    found, whole = Counter(itertools.chain(*parts)), [tuple(b["key"]) for b in make(0, 1)]
    if uneven == "exact":
        assert found == Counter(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        return
    assert len(set(map(len, parts))) == 1
    if uneven == "pad":
        assert found.keys() == set(whole)
        assert sum(found.values()) - len(whole) < world_size
    else:
        assert set(found.values()) == {1}
        assert len(whole) - len(found) < world_size


@pytest.mark.slow
def test_all_ranks_of_a_step_are_in_one_bucket(cache: Cache) -> None:
    options: dict[str, Any] = {"batch_size": 1, "bucket_run": 4, "uneven": "pad"}
    for world_size in (1, 2, 4):
        loaders = [
            LatentLoader(cache, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]
        steps = list(zip(*loaders, strict=True))
        assert all(len({batch["bucket"] for batch in step}) == 1 for step in steps)
        assert sorted({key for step in steps for key in flat(step)}) == sorted(
            flat(LatentLoader(cache))
        )
    with pytest.raises(ConfigError, match="bucket_run 4 is no multiple of world_size 3"):
        LatentLoader(cache, world_size=3, **options)
    with pytest.raises(ConfigError, match="bucket 1x32x48 has 4 batches, which make no run of"):
        LatentLoader(cache, **{**options, "bucket_run": 8, "uneven": "drop"})


@pytest.mark.parametrize("uneven", ["drop", "pad"])
def test_more_ranks_begin_where_all_are_at_the_same_place(uneven: Any, cache: Cache) -> None:
    options: dict[str, Any] = {"batch_size": 1, "bucket_run": 4, "uneven": uneven}
    whole = [tuple(batch["key"]) for batch in LatentLoader(cache, **options)]
    loader = LatentLoader(cache, **options)
    list(itertools.islice(loader, 3))
    resumed = [LatentLoader(cache, rank=rank, world_size=4, **options) for rank in range(4)]
    for rank in resumed:
        rank.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    found = [tuple(batch["key"]) for step in zip(*resumed, strict=True) for batch in step]
    assert found == whole[4:] if uneven == "drop" else whole


# Several caches


@pytest.mark.slow
def test_a_mixture_has_its_shares_at_any_time(pair: list[Cache]) -> None:
    loader = LatentLoader(pair, batch_size=1, weights=[0.75, 0.25], epoch_batches=80)
    found = [cache for cache, _ in names(loader)]
    assert len(found) == len(loader) == 80
    for end in range(1, 81):
        assert abs(found[:end].count(0) - 0.75 * end) < 2


@pytest.mark.slow
def test_the_caches_of_a_mixture_go_through_epochs_of_their_own(pair: list[Cache]) -> None:
    loader = LatentLoader(pair, batch_size=2, weights=[1, 1])
    batches = [batch for _ in range(3) for batch in names(loader)]
    assert len(batches) == 3 * (3 + 9)
    for number, cache in enumerate(pair):
        keys = [key for of, keys in batches if of == number for key in keys]
        for start in range(0, len(keys), len(cache)):
            epoch = keys[start : start + len(cache)]
            assert len(set(epoch)) == len(epoch)
    small = [keys for of, keys in batches if of == 0]
    assert small[:3] != small[3:6]


@pytest.mark.slow
def test_each_cache_comes_once_an_epoch_where_no_weights_say_otherwise(pair: list[Cache]) -> None:
    found = Counter(
        (of, key) for of, keys in names(LatentLoader(pair, batch_size=4)) for key in keys
    )
    assert set(found.values()) == {1}
    assert len(found) == sum(map(len, pair))


def test_a_mixture_normalises_and_reads_each_cache_as_its_own(pair: list[Cache]) -> None:
    for batch in LatentLoader(pair, batch_size=2):
        cache = pair[batch["cache"]]
        stored = torch.stack([cache.stored(key) for key in batch["key"]])
        assert torch.equal(batch["latents"], posterior.normalise(stored, cache.spec.normaliser))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    num=st.integers(0, 5),
    weight=st.floats(0.1, 10),
)
def test_the_state_of_a_mixture_fits_any_world_size(
    before: int, after: int, num: int, weight: float, pair: list[Cache]
) -> None:
    def make(rank: int, world_size: int) -> LatentLoader:
        return LatentLoader(
            pair,
            batch_size=1,
            weights=[weight, 1],
            rank=rank,
            world_size=world_size,
            uneven="pad",
        )

    whole = names(make(0, 1))
    loader = make(0, before)
    assert names(itertools.islice(loader, num)) == whole[: num * before : before][:num]
    resumed = [make(rank, after) for rank in range(after)]
    for rank in resumed:
        rank.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    parts = [names(rank) for rank in resumed]
    together = [batch for step in zip(*parts, strict=True) for batch in step]
    rest = whole[num * before :]
    assert together[: len(rest)] == rest


@pytest.mark.slow
def test_caches_that_no_model_takes_together_are_refused(pair: list[Cache], tmp_path: Path) -> None:
    other = write_cache(str(tmp_path / "c"), channels=8)
    with pytest.raises(ConfigError, match="cannot be mixed: channels 4 and 8"):
        LatentLoader([pair[0], other.url])
    half = open_cache(write_cache(str(tmp_path / "h"), dtype="float16").url)
    with pytest.raises(ConfigError, match=r"dtype torch\.bfloat16 and torch\.float16"):
        LatentLoader([pair[0], half])
    assert len(LatentLoader([pair[0], half], dtype=torch.float32)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "one positive number for each"),
        ({"weights": [1, 0]}, r"weights\[1\] is 0: it must be a number above 0"),
        ({"weights": [1000, 1]}, "cache 1 gets none"),
        ({"epoch_batches": 0}, "epoch_batches is 0: it must be a whole number, 1 or more"),
        ({"epoch_batches": 3, "world_size": 4}, "3 batches has too few for 4 ranks"),
        ({"uneven": "exact"}, "Evaluate one cache after the other"),
        ({"where": [("score", ">", 10)]}, "no clip of .* is chosen"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, pair: list[Cache]
) -> None:
    with pytest.raises(ConfigError, match=message):
        LatentLoader(pair, batch_size=2, **options)
