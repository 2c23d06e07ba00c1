"""A loader's state keeps its fields as they were, though more of them is there when it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentcache
from latentcache import LatentLoader
from latentcache.core.dtypes import as_numpy
from latentcache.core.records import ShardId
from latentcache.format.fields.manifest import create_version, read_field
from latentcache.format.fields.snapshot import publish_field
from latentcache.planning.planned import PlannedCache
from latentcache.reading.loader import field_parts
from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of, grow, padded, relabel, text_field

CAPTIONS = [f"caption {n}" for n in range(8)]
BUCKET = "5x64x96"


def loader_of(cache: PlannedCache, **options: Any) -> LatentLoader:
    return LatentLoader(cache.storage.url, 2, fields=["umt5"], seed=4, **options)


def saved(loader: LatentLoader) -> dict[str, Any]:
    """A state as a file gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(loader.state_dict()))
    return found


def broken_off(loader: LatentLoader) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The state after one batch, and the batches that followed it."""
    stream = iter(loader)
    next(stream)
    return saved(loader), list(stream)


def check_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            is_same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert is_same(one[name], value), name


def test_clips_that_lacked_a_text_still_lack_it_where_a_run_is_resumed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    cache = grow(cache, [f"grown {n}" for n in range(4)])
    kinds = ("null", "leave_out")
    before = {missing: broken_off(loader_of(cache, missing=missing)) for missing in kinds}
    lacking = [loader.left_out for loader in (loader_of(cache), loader_of(cache, missing="null"))]
    assert lacking == [[{"umt5": 3}], [{}]]
    add(cache, "--update", umt5=text_field())
    for missing, (state, wanted) in before.items():
        resumed = loader_of(cache, missing=missing)
        assert resumed.left_out == [{}]
        resumed.load_state_dict(state)
        assert saved(resumed) == state
        check_same(list(resumed), wanted)
        whole = [b for batch in loader_of(cache, missing=missing) for b in _clips(batch)]
        assert len(whole) == 10
        for caption, states in whole:
            np.testing.assert_array_equal(as_numpy(states), padded(caption))


def _clips(batch: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return list(zip(batch["caption"], batch["umt5"], strict=True))


def test_a_version_that_was_planned_only_stays_unread_where_a_run_is_resumed(
    tmp_path: Path,
) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    cache = relabel(cache, {"v0#0": "other", "v5#0": "else"})
    field = read_field(cache.storage, "umt5", cache.manifest)
    rows = {ShardId(BUCKET, 0): frozenset({0}), ShardId(BUCKET, 1): frozenset({1})}
    assert create_version(cache.storage, field, "update", 2, rows)
    state, wanted = broken_off(loader_of(cache))
    run_inline("resume", cache.storage.url)
    resumed = loader_of(cache)
    clips = [clip for batch in resumed for clip in _clips(batch)]
    for caption, states in clips:
        np.testing.assert_array_equal(as_numpy(states), padded(caption))
    assert {"other", "else"} <= {caption for caption, _ in clips}
    resumed.load_state_dict(state)
    assert saved(resumed) == state
    check_same(list(resumed), wanted)


@pytest.mark.slow
def test_workers_that_are_there_take_the_parts_of_a_state(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    cache = grow(cache, [f"grown {n}" for n in range(4)])
    old = loader_of(cache)
    state, wanted = saved(old), list(old)
    add(cache, "--update", umt5=text_field())
    loader = loader_of(cache)
    data = DataLoader(loader, batch_size=None, num_workers=1, persistent_workers=True)
    assert sum(len(batch["key"]) for batch in data) == 10
    loader.load_state_dict(state)
    check_same(list(data), wanted)


def test_shards_that_are_gone_are_named_and_encoded_again(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    state, wanted = broken_off(loader_of(cache))
    folder = tmp_path / "cache/fields/umt5"
    shutil.rmtree(folder / f"000001/{BUCKET}/c/1")
    (folder / f"samples/000001/{BUCKET}/000001.parquet").unlink()
    field = read_field(cache.storage, "umt5", cache.manifest)
    (folder / "index.parquet").unlink()
    publish_field(cache.storage, field, cache.manifest)
    loader = loader_of(cache)
    here = saved(loader)
    message = rf"1 shard of the field umt5 .* {BUCKET}/1 of version 1, .*`latentcache resume"
    with pytest.raises(latentcache.CacheError, match=message):
        loader.load_state_dict(state)
    assert saved(loader) == here
    run_inline("resume", cache.storage.url)
    resumed = loader_of(cache)
    resumed.load_state_dict(state)
    check_same(list(resumed), wanted)


def test_a_cache_that_was_opened_before_a_field_grew_says_so(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    earlier = latentcache.open_cache(cache.storage.url)
    earlier.field("umt5")
    cache = relabel(cache, {"v0#0": "other"})
    add(cache, "--update", umt5=text_field())
    state = saved(loader_of(cache))
    loader = LatentLoader(earlier, 2, fields=["umt5"], seed=4)
    with pytest.raises(latentcache.CacheError, match=r"1 shard of the field umt5 .*open it again"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("missing", ["leave_out", "null"])
def test_ranks_that_opened_around_an_update_agree_by_one_ranks_newest(
    missing: str, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    cache = relabel(cache, {"v0#0": "other", "v1#0": "else", "v3#0": "third"})
    first, alone = (loader_of(cache, missing=missing, world_size=n) for n in (2, 1))
    add(cache, "--update", umt5=text_field())
    second = loader_of(cache, missing=missing, rank=1, world_size=2)
    chosen = json.loads(json.dumps(first.newest()))
    for loader in (first, second):
        loader.set_epoch(0, snapshots=chosen)
    assert len(first) == len(second)
    assert first.left_out == second.left_out == alone.left_out
    wanted = list(alone)
    check_same(list(first), wanted[::2][: len(first)])
    check_same(list(second), wanted[1::2])
    with pytest.raises(latentcache.CacheError, match=r"snapshot .* umt5 .*open it again"):
        first.set_epoch(1, snapshots=second.newest())


def test_the_newest_parts_are_those_that_a_loader_found_whatever_state_it_goes_on_with(
    tmp_path: Path,
) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=4)
    add(cache, umt5=text_field())
    cache = relabel(cache, {"v0#0": "other"})
    state = saved(loader_of(cache))
    add(cache, "--update", umt5=text_field())
    loader = loader_of(cache)
    newest = loader.newest()
    loader.load_state_dict(state)
    assert sum(loader.left_out[0].values()) == 1
    assert loader.newest() == newest
    loader.set_epoch(1, newest)
    assert loader.left_out == [{}]


@pytest.mark.parametrize("is_updated", [True, False])
def test_a_state_of_a_field_that_was_dropped_and_made_again_says_so(
    is_updated: bool, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    changed = relabel(cache, {"v0#0": "other"})
    if is_updated:
        add(changed, "--update", umt5=text_field())
    state = saved(loader_of(changed))
    run_inline("drop_field", cache.storage.url, "umt5", "--yes")
    add(changed, umt5=text_field())
    with pytest.raises(
        latentcache.CacheError, match=r"umt5 was dropped and made again.*set_epoch\.$"
    ):
        loader_of(changed).load_state_dict(state)


def test_a_field_of_another_recipe_is_not_that_of_a_state(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    state = saved(loader_of(cache))
    shutil.rmtree(tmp_path / "cache/fields/umt5")
    add(cache, umt5=text_field(length=16))
    with pytest.raises(latentcache.CacheError, match="the field umt5 is not the one of the state"):
        loader_of(cache).load_state_dict(state)


def test_a_state_of_another_set_of_fields_takes_what_is_there(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    state = saved(LatentLoader(cache.storage.url, 2, seed=4))
    loader = loader_of(cache)
    loader.load_state_dict(state)
    check_same(list(loader), list(loader_of(cache)))


@pytest.mark.slow
def test_states_of_many_shards_are_small(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    reader = latentcache.open_cache(cache.storage.url).field("umt5")
    shards = [ShardId(BUCKET, n) for n in range(100_000)]
    every = [field_parts.Part(1, shard) for shard in shards]
    some = [every[n] for n in np.flatnonzero(np.random.default_rng(0).random(len(every)) < 0.5)]
    for parts, size in ((every, 100), (some, 2 * len(every) // 8)):
        reader.parts = parts
        identity = field_parts.identity_of(reader, shards)
        assert len(identity["parts"]) < size
        assert field_parts.kept(reader, identity, shards).all()
        reader.parts = every
        kept = field_parts.kept(reader, identity, shards)
        assert [part for part, is_kept in zip(every, kept, strict=True) if is_kept] == parts
