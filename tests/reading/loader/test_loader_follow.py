"""Caches that grow while they are read: snapshots of epochs, of states and of ranks."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from latentcache.errors import CacheError, ConfigError
from latentcache.format.manifest import BucketInfo, read_manifest
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.snapshot import build_index, publish, read_index, shard_of
from latentcache.reading import shard_set
from latentcache.reading.cache import open_cache
from latentcache.reading.loader import sources
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.loader.sources import newest
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, start_job
from tests.tools.synthetic import Synthetic, write_cache

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def growing(tmp_path: Path) -> Synthetic:
    """A cache of seven shards, of which `grow` publishes some."""
    return write_cache(str(tmp_path / "cache"), buckets={"1x32x48": 9, "5x32x32": 15})


def grow(cache: Synthetic, shards: list[int]) -> list[str]:
    """Publish these shards of the seven, and return the keys of their clips."""
    index = build_index(cache.storage, cache.manifest)
    publish(cache.storage, index.take(pa.array(sorted(shards))))
    opened = open_cache(cache.url)
    return sorted(opened.table(["key"])["key"].to_pylist())


def keys(batches: Any) -> list[list[str]]:
    return [batch["key"] for batch in batches]


def flat(batches: Any) -> list[str]:
    return sorted(key for batch in batches for key in batch["key"])


@pytest.mark.slow
def test_every_epoch_is_of_the_newest_snapshot(growing: Synthetic) -> None:
    few = grow(growing, [1, 4])
    loader = LatentLoader(growing.url, batch_size=2, follow=True)
    still = LatentLoader(growing.url, batch_size=2)
    assert flat(loader) == few
    more = grow(growing, [0, 1, 4, 6])
    assert loader.epoch == 1
    assert flat(loader) == few  # that snapshot was taken when its predecessor ended
    assert flat(loader) == more
    assert len(loader) == len(keys(loader))
    assert flat(still) == few
    assert flat(still) == few


@pytest.mark.slow
def test_an_epoch_under_way_does_not_see_the_cache_grow(growing: Synthetic) -> None:
    few = grow(growing, [1, 4])
    loader = LatentLoader(growing.url, batch_size=2, follow=True)
    running = iter(loader)
    taken = [next(running)["key"]]
    grow(growing, [0, 1, 4, 6])
    assert sorted(itertools.chain(*taken, *keys(running))) == few


@pytest.mark.slow
@pytest.mark.parametrize("follow", [True, False])
def test_a_state_goes_on_in_its_snapshot_though_the_cache_has_grown(
    follow: bool, growing: Synthetic
) -> None:
    grow(growing, [1, 4])
    reference = LatentLoader(growing.url, batch_size=2)
    expected = keys(reference)
    loader = LatentLoader(growing.url, batch_size=2, follow=follow)
    taken = keys(itertools.islice(loader, 2))
    state = json.loads(json.dumps(loader.state_dict()))
    more = grow(growing, [0, 1, 4, 6])
    resumed = LatentLoader(growing.url, batch_size=2, follow=follow)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert taken + keys(resumed) == expected
    if follow:
        assert flat(resumed) == more
    else:
        assert keys(resumed) == keys(reference)


@pytest.mark.slow
def test_a_filter_follows_too(growing: Synthetic) -> None:
    grow(growing, [1, 4])
    loader = LatentLoader(growing.url, batch_size=2, follow=True, where=[("score", ">", 1)])
    state = loader.state_dict()
    grow(growing, [0, 1, 2, 3, 4, 5, 6])
    whole = open_cache(growing.url)
    loader.set_epoch(1)
    expected = [key for key in growing.arrays if whole.sample(key)["score"] > 1]
    assert flat(loader) == sorted(expected)
    LatentLoader(growing.url, batch_size=2, where=[("score", ">", 1)]).load_state_dict(state)


@pytest.mark.slow
def test_a_snapshot_that_is_not_published_any_more_is_read(growing: Synthetic) -> None:
    """It follows from what is committed, which nothing takes away."""
    few = grow(growing, [1, 4])
    state = LatentLoader(growing.url, batch_size=2).state_dict()
    grow(growing, [1])
    resumed = LatentLoader(growing.url, batch_size=2)
    resumed.load_state_dict(state)
    assert flat(resumed) == few


@pytest.mark.slow
def test_a_snapshot_whose_shards_have_changed_is_refused(growing: Synthetic) -> None:
    """They were encoded again, and other clips of them are ok."""
    grow(growing, [1, 4])
    state = LatentLoader(growing.url, batch_size=2).state_dict()
    index = read_index(growing.storage)
    fewer = pa.array([num - 1 for num in index["num_ok"].to_pylist()], pa.int32())
    at = index.column_names.index("num_ok")
    publish(growing.storage, index.set_column(at, index.schema.field("num_ok"), fewer))
    with pytest.raises(CacheError, match="its shards hold other clips than they did"):
        LatentLoader(growing.url, batch_size=2).load_state_dict(state)


@pytest.mark.slow
def test_workers_read_the_snapshot_that_was_chosen(growing: Synthetic) -> None:
    """Persistent ones too, which have a copy of the loader from before."""
    few = grow(growing, [1, 4])
    loader = LatentLoader(growing.url, batch_size=2, follow=True)
    data: DataLoader[Any] = DataLoader(
        loader,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    assert flat(data) == few
    more = grow(growing, [0, 1, 4, 6])
    assert flat(data) == few
    loader.set_epoch(1)
    assert flat(data) == more


@pytest.mark.slow
def test_ranks_agree_by_one_ranks_newest(growing: Synthetic) -> None:
    grow(growing, [1, 4])
    first = LatentLoader(growing.url, batch_size=2, rank=0, world_size=2)
    grow(growing, [0, 1, 4, 6])
    second = LatentLoader(growing.url, batch_size=2, rank=1, world_size=2)
    chosen = json.loads(json.dumps(first.newest()))
    everything = grow(growing, [0, 1, 2, 4, 5, 6])
    for loader in (first, second):
        loader.set_epoch(1, chosen)
    found = flat(first) + flat(second)
    assert sorted(found) == grow(growing, [0, 1, 4, 6])
    assert len(found) < len(everything)


def test_ranks_that_cannot_agree_are_refused(growing: Synthetic) -> None:
    with pytest.raises(
        ConfigError, match=r"follow: each of 2 ranks .* Initialise torch\.distributed"
    ):
        LatentLoader(growing.url, world_size=2, follow=True)


def _look_first(looked: list[Any], *arguments: Any) -> list[dict[str, Any]]:
    """Rank 0's way to look: the others go on once it has seen a first snapshot."""
    found = newest(*arguments)
    if not looked:
        looked.append(found)
        dist.barrier()
    return found


def _follow(rank: int, url: str, folder: str) -> None:
    """One of two ranks: the cache grows after the first and before the second has looked."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    if rank == 1:
        dist.barrier()
        publish(Storage(url), build_index(Storage(url), read_manifest(Storage(url))))
    look = newest if rank else partial(_look_first, [])
    with mock.patch.object(sources, "newest", look):
        loader = LatentLoader(
            url, batch_size=1, rank=rank, world_size=2, follow=True, uneven="exact"
        )
        epochs = [keys(loader) for _ in range(2)]
    Path(folder, f"{rank}.json").write_text(json.dumps(epochs))
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.slow
def test_ranks_take_rank_0s_snapshot(growing: Synthetic, tmp_path: Path) -> None:
    few = grow(growing, [1, 4])
    arguments = (growing.url, str(tmp_path))
    multiprocessing.start_processes(_follow, arguments, nprocs=2, start_method="spawn")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epochs, expected in zip(zip(*ranks, strict=True), (few, [*growing.arrays]), strict=True):
        together = [key for epoch in epochs for batch in epoch for key in batch]
        assert sorted(together) == sorted(expected)


@pytest.mark.slow
def test_a_run_is_followed_while_it_goes_on(tmp_path: Path) -> None:
    """It commits some forty shards, one by one, and publishes each."""
    corpus = make_corpus(tmp_path / "corpus", 4, frames=51)
    url = tmp_path / "cache"
    config = make_config(
        tmp_path, corpus, str(url), cache={"shard_clips": 1}, run={"snapshot_interval_s": 0.001}
    )
    process = start_job("precompute", config)
    loader = None
    sizes: list[int] = []
    while process.poll() is None or not sizes:
        try:
            loader = loader or LatentLoader(str(url), batch_size=1, follow=True)
        except (CacheError, ConfigError):  # nothing is published yet, or no clip
            assert process.poll() in (None, 3), process.communicate()
            continue
        snapshot = loader.cache
        running = iter(loader)
        first = [next(running)["key"]]
        state = json.loads(json.dumps(loader.state_dict()))
        rest = keys(running)
        again = LatentLoader(str(url), batch_size=1)
        again.load_state_dict(state)
        assert keys(again) == rest
        found = sorted(key for batch in first + rest for key in batch)
        assert found == sorted(snapshot[n]["key"] for n in range(len(snapshot)))
        sizes.append(len(found))
    out, err = process.communicate()
    assert process.returncode == 3, out + err  # the corpus has a page and a short clip
    assert loader is not None
    loader.set_epoch(loader.epoch + 1)
    assert len(flat(loader)) == len(open_cache(str(url))) > sizes[0]
    assert sizes == sorted(sizes)


# Sets of shards


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 20)), min_size=1, max_size=4), st.data())
def test_a_set_of_shards_is_kept_as_text(present: list[set[int]], data: st.DataObject) -> None:
    buckets = [
        BucketInfo(name=f"{n + 1}x8x8", num_clips=21, num_shards=21, shape=(1, 1, 1, 1))
        for n in range(len(present))
    ]
    rows = [
        {
            "bucket": bucket.name,
            "shard": s,
            "num_clips": 1,
            "num_ok": 1,
            "stored_bytes": 1,
            "table_bytes": 1,
            "retired": None,
            "columns": None,
        }
        for bucket, shards in zip(buckets, present, strict=True)
        for s in sorted(shards)
    ]
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    bits = shard_set.to_bits(buckets, index)
    again = shard_set.from_text(json.loads(json.dumps(shard_set.to_text(bits))))
    assert np.array_equal(again, bits)
    assert shard_set.shards_of(buckets, bits) == [shard_of(row) for row in rows]
    fewer = index.slice(0, data.draw(st.integers(0, len(index))))
    some = shard_set.to_bits(buckets, fewer)
    assert shard_set.shards_of(buckets, some) == [shard_of(row) for row in fewer.to_pylist()]


def test_the_state_of_a_large_cache_is_small() -> None:
    num = 1_000_000
    some = np.random.default_rng(0).random(num) < 0.5
    assert len(shard_set.to_text(np.packbits(np.ones(num, np.bool_)))) < 1000
    assert len(shard_set.to_text(np.packbits(some))) < 2 * num / 8
    again = shard_set.from_text(shard_set.to_text(np.packbits(some)))
    assert np.array_equal(again, np.packbits(some))


@pytest.mark.slow
def test_the_published_snapshot_is_what_newest_returns(growing: Synthetic) -> None:
    loader = LatentLoader(growing.url)
    grow(growing, [2])
    (newest,) = loader.newest()
    bits = shard_set.to_bits(growing.manifest.buckets, read_index(growing.storage))
    assert newest["shards"] == shard_set.to_text(bits)
    assert newest["snapshot"] == open_cache(growing.url).snapshot
