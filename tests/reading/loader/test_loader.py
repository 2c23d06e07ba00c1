from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentcache.core import posterior
from latentcache.core.dtypes import as_numpy
from latentcache.errors import CacheError, CorruptionError
from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import Synthetic, write_cache

FAILED = [("5x32x32", 1), ("1x32x48", 4)]
#: More workers than this machine may have cores, and forks beside threads: both on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("cache")), failed=FAILED)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("moments")), stored="moments", dtype="float32")


def keys(batches: Any) -> list[list[str]]:
    return [batch["key"] for batch in batches]


def flat(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def raw(url: str, **options: Any) -> LatentLoader:
    return LatentLoader(url, normalise=False, **options)


@pytest.mark.parametrize("codec", ["zstd", "lz4", "none"])
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_an_epoch_is_a_permutation_of_the_ok_clips(name: str, codec: str, tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), format=name, codec=codec, failed=FAILED)
    batches = list(raw(cache.url, batch_size=3))
    assert sorted(flat(batches)) == sorted(cache.arrays)
    assert not set(flat(batches)) & set(cache.failed)
    for batch in batches:
        assert batch["latents"].dtype == torch.bfloat16
        assert batch["latents"].is_contiguous()
        expected = np.stack([cache.arrays[key] for key in batch["key"]])
        np.testing.assert_array_equal(
            as_numpy(batch["latents"]).view(np.uint16), expected.view(np.uint16)
        )


def test_a_batch_says_what_its_samples_are(written: Synthetic) -> None:
    cache = open_cache(written.url)
    for batch in LatentLoader(cache, batch_size=4):
        assert list(batch) == ["latents", "key", "caption", "score", "bucket"]
        samples = [cache.sample(key) for key in batch["key"]]
        assert batch["caption"] == [s["caption"] for s in samples]
        assert batch["score"] == [s["score"] for s in samples]
        assert {s["bucket"] for s in samples} == {batch["bucket"]}


def test_storage_order_without_shuffling(written: Synthetic) -> None:
    assert flat(LatentLoader(written.url, shuffle=False)) == list(written.arrays)


def test_drop_last_leaves_out_the_short_batches(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=3, drop_last=True)
    batches = list(loader)
    assert [len(b["key"]) for b in batches] == [3] * 4
    assert len(loader) == 4


@pytest.mark.slow
def test_epochs_follow_each_other_and_differ(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2)
    epochs = [keys(loader) for _ in range(3)]
    assert loader.epoch == 3
    assert len({str(epoch) for epoch in epochs}) == 3
    again = LatentLoader(written.url, batch_size=2)
    for epoch in (2, 0, 1):
        again.set_epoch(epoch)
        assert keys(again) == epochs[epoch]
    other = LatentLoader(written.url, batch_size=2, seed=1)
    assert keys(other) != epochs[0]


def test_an_epoch_that_was_broken_off_starts_again(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2)
    first = keys(itertools.islice(loader, 3))
    assert loader.state_dict()["batches"] == 3
    assert keys(loader)[:3] == first


@pytest.mark.slow
def test_ranks_share_an_epoch_and_take_as_many_steps(written: Synthetic) -> None:
    whole = keys(LatentLoader(written.url, batch_size=2))
    for world_size in (2, 3):
        loaders = [
            LatentLoader(written.url, batch_size=2, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        parts = [keys(loader) for loader in loaders]
        steps = len(whole) // world_size
        assert (
            [len(p) for p in parts] == [len(loader) for loader in loaders] == [steps] * world_size
        )
        together = [batch for step in zip(*parts, strict=True) for batch in step]
        assert together == whole[: steps * world_size]


# DataLoader workers


def through_workers(loader: LatentLoader, num_workers: int, start_method: str) -> list[Any]:
    context = start_method if num_workers else None
    data = DataLoader(
        loader, batch_size=None, num_workers=num_workers, multiprocessing_context=context
    )
    try:
        return list(data)
    except CorruptionError as error:
        # The traceback is a cycle around the DataLoader's iterator, which needs seconds to end its
        # workers where the garbage collector meets its queues first.
        raise error.with_traceback(None) from None


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("num_workers", "start_method"),
    [
        (0, "fork"),
        (1, "fork"),
        (2, "fork"),
        (3, "fork"),
        (4, "fork"),
        *(pytest.param(2, how, marks=pytest.mark.long) for how in ("spawn", "forkserver")),
    ],
)
def test_the_order_is_the_same_for_any_workers(
    num_workers: int, start_method: str, written: Synthetic
) -> None:
    loader = LatentLoader(written.url, batch_size=2, seed=5)
    expected = list(loader)  # the parent has read already when it forks
    loader.set_epoch(0)
    batches = through_workers(loader, num_workers, start_method)
    assert keys(batches) == keys(expected)
    for found, batch in zip(batches, expected, strict=True):
        assert torch.equal(found["latents"], batch["latents"])


@pytest.mark.slow
def test_ranks_with_workers_lose_and_double_nothing(written: Synthetic) -> None:
    whole = LatentLoader(written.url, batch_size=1)
    found = []
    for rank in range(2):
        loader = LatentLoader(written.url, batch_size=1, rank=rank, world_size=2)
        found += flat(through_workers(loader, 3, "fork"))
    assert sorted(found) == sorted(flat(whole))


@pytest.mark.slow
def test_set_epoch_reaches_persistent_workers(written: Synthetic) -> None:
    plain = LatentLoader(written.url, batch_size=2)
    expected = [keys(plain) for _ in range(3)]
    loader = LatentLoader(written.url, batch_size=2)
    data = DataLoader(
        loader,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for epoch in (0, 2, 1):
        loader.set_epoch(epoch)
        assert keys(data) == expected[epoch]


@pytest.mark.slow
def test_a_fork_amid_an_iteration_is_sound(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2)
    expected = keys(loader)
    loader.set_epoch(0)
    running = iter(loader)
    first = next(running)
    other = LatentLoader(loader.cache, batch_size=2)
    assert keys(through_workers(other, 2, "fork")) == expected
    assert [first["key"], *keys(running)] == expected


@pytest.mark.slow
def test_posterior_samples_do_not_depend_on_workers(moments: Synthetic) -> None:
    loader = LatentLoader(moments.url, batch_size=2, seed=3)
    expected = list(loader)
    for num_workers in (1, 3):
        loader.set_epoch(0)
        batches = through_workers(loader, num_workers, "fork")
        assert keys(batches) == keys(expected)
        for found, batch in zip(batches, expected, strict=True):
            assert torch.equal(found["latents"], batch["latents"])


# State


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_the_state_after_any_batch_goes_on_with_the_next(
    name: str, world_size: int, tmp_path: Path
) -> None:
    cache = open_cache(write_cache(str(tmp_path), format=name, failed=FAILED).url)

    def make() -> LatentLoader:
        return LatentLoader(cache, batch_size=2, world_size=world_size, rank=world_size - 1)

    reference = make()
    expected = [keys(reference) for _ in range(2)]
    for num in range(len(expected[0]) + 1):
        loader, resumed = make(), make()
        taken = keys(itertools.islice(loader, num))
        state = json.loads(json.dumps(loader.state_dict()))
        assert (state["epoch"], state["batches"]) == (0, num * world_size)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = keys(resumed)
        assert taken + rest == expected[0]
        assert keys(resumed) == expected[1]


@pytest.mark.slow
def test_a_loaded_state_survives_set_epoch_of_its_own_epoch(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2)
    loader.set_epoch(4)
    expected = keys(loader)
    loader.set_epoch(4)
    running = iter(loader)
    for _ in range(3):
        next(running)
    state = loader.state_dict()
    for again, tail in ((4, expected[3:]), (5, None)):
        resumed = LatentLoader(written.url, batch_size=2)
        resumed.load_state_dict(state)
        resumed.set_epoch(again)
        found = keys(resumed)
        assert found == tail if tail else len(found) == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2), (2, 3)])
def test_a_state_fits_another_world_size(before: int, after: int, written: Synthetic) -> None:
    whole = keys(LatentLoader(written.url, batch_size=1))
    loader = LatentLoader(written.url, batch_size=1, world_size=before)
    running = iter(loader)
    next(running), next(running)
    state = loader.state_dict()
    parts = []
    for rank in range(after):
        resumed = LatentLoader(written.url, batch_size=1, world_size=after, rank=rank)
        resumed.load_state_dict(state)
        parts.append(keys(resumed))
    together = [batch for step in zip(*parts, strict=True) for batch in step]
    rest = whole[2 * before :]
    assert together == rest[: len(rest) // after * after]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_state_is_taken_and_restored_through_workers(
    num_workers: int, written: Synthetic
) -> None:
    expected = keys(LatentLoader(written.url, batch_size=2))
    loader = LatentLoader(written.url, batch_size=2)
    data = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork")
    taken = keys(itertools.islice(data, 3))
    state = loader.state_dict(num_batches=3)
    resumed = LatentLoader(written.url, batch_size=2)
    resumed.load_state_dict(state)
    assert resumed.state_dict(num_batches=1)["batches"] == 4
    assert taken + keys(through_workers(resumed, num_workers, "fork")) == expected


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"batch_size": 3}, {"shuffle": False}, {"drop_last": True}]
)
def test_the_state_of_another_order_is_refused(other: dict[str, Any], written: Synthetic) -> None:
    state = LatentLoader(written.url, batch_size=2).state_dict()
    (name,) = other
    with pytest.raises(CacheError, match=rf"(?s)another order .*{name}: .* in the state, .* here"):
        LatentLoader(written.url, **{"batch_size": 2, **other}).load_state_dict(state)


@pytest.mark.slow
def test_the_state_of_another_cache_is_refused(written: Synthetic, tmp_path: Path) -> None:
    state = LatentLoader(written.url).state_dict()
    other = LatentLoader(write_cache(str(tmp_path), dtype="float16").url)
    with pytest.raises(CacheError, match=r"(?s)fingerprint: .* snapshot: "):
        other.load_state_dict(state)
    for wrong in ({}, {**state, "version": 99}, {k: v for k, v in state.items() if k != "batches"}):
        with pytest.raises(CacheError, match=r"version|batches"):
            LatentLoader(written.url).load_state_dict(wrong)


# Latents


def test_normalising_is_the_models_own(written: Synthetic) -> None:
    spec = open_cache(written.url).spec
    for dtype in (None, torch.float32):
        for batch in LatentLoader(written.url, dtype=dtype):
            stored = np.stack([written.arrays[key] for key in batch["key"]]).astype(np.float32)
            expected = posterior.normalise(torch.from_numpy(stored), spec.normaliser)
            assert torch.equal(batch["latents"], expected.to(dtype or torch.bfloat16))


@pytest.mark.slow
def test_moments_give_a_seeded_sample_or_their_mean(moments: Synthetic) -> None:
    sampled = next(iter(raw(moments.url, batch_size=2, seed=9, shuffle=False)))
    mode = next(iter(raw(moments.url, batch_size=2, posterior="mode", shuffle=False)))
    stored = torch.from_numpy(np.stack([moments.arrays[key] for key in mode["key"]]))
    mean, logvar = posterior.split(stored)
    assert torch.equal(mode["latents"], mean)
    assert mode["latents"].is_contiguous()
    seeds = [posterior.sample_seed(9, 0, key) for key in sampled["key"]]
    assert torch.equal(sampled["latents"], posterior.sample(mean, logvar, seeds))


@pytest.mark.slow
def test_each_epoch_draws_anew(moments: Synthetic) -> None:
    loader = raw(moments.url, shuffle=False)
    first, second = next(iter(loader)), None
    loader.set_epoch(1)
    second = next(iter(loader))
    assert first["key"] == second["key"]
    assert not torch.equal(first["latents"], second["latents"])


@pytest.mark.slow
def test_ids_are_neither_normalised_nor_sampled(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), dtype="uint16", stored="ids")
    for dtype in (None, torch.uint16):
        for batch in LatentLoader(cache.url, dtype=dtype):
            expected = np.stack([cache.arrays[key] for key in batch["key"]]).astype(np.int64)
            assert batch["latents"].dtype == (dtype or torch.int64)
            np.testing.assert_array_equal(batch["latents"].to(torch.int64).numpy(), expected)


# Errors and resources


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_corruption_names_the_clip(num_workers: int, tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets={"5x32x32": 9})
    chunk = open_cache(cache.url).rows("5x32x32", 1).chunks[2]
    path = tmp_path / "latents/5x32x32/c/1/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[chunk.offset] ^= 1
    path.write_bytes(data)
    loader = LatentLoader(cache.url, batch_size=2)
    with pytest.raises(CorruptionError, match="clip '5x32x32-0006': shard 5x32x32/1, row 2"):
        through_workers(loader, num_workers, "fork")
    assert threads() == []


def test_a_shard_that_is_gone_names_a_clip(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets={"5x32x32": 9})
    (tmp_path / "latents/5x32x32/c/1/0/0/0/0").unlink()
    with pytest.raises(
        CorruptionError, match=r"clip '5x32x32-000[4567]': .* the object is missing"
    ):
        list(LatentLoader(cache.url, batch_size=2))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("latentcache")]


def test_breaking_off_leaves_no_thread(written: Synthetic) -> None:
    for _ in LatentLoader(written.url, batch_size=1, num_threads=8):
        assert threads()
        break
    assert threads() == []


@pytest.mark.parametrize("prefetch_bytes", [1, 10**9])
def test_any_bound_of_what_is_read_ahead_gives_the_same(
    prefetch_bytes: int, written: Synthetic
) -> None:
    loader = LatentLoader(written.url, batch_size=2, prefetch_bytes=prefetch_bytes, num_threads=1)
    assert keys(loader) == keys(LatentLoader(written.url, batch_size=2))


def test_batches_do_not_share_memory(written: Synthetic) -> None:
    batches = list(raw(written.url, batch_size=1))
    assert len({b["latents"].untyped_storage().data_ptr() for b in batches}) == len(batches)
    assert all(b["latents"].untyped_storage().nbytes() == b["latents"].nbytes for b in batches)


def test_what_was_read_is_counted(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=3)
    total = sum(batch["latents"].nbytes for batch in loader)
    assert (loader.stats.num_batches, loader.stats.num_samples) == (len(loader), 14)
    assert loader.stats.num_bytes == total
    assert loader.stats.wait_s > 0


def test_the_loader_pickles(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2)
    loader.set_epoch(3)
    again = pickle.loads(pickle.dumps(loader))
    assert keys(again) == keys(loader)


@pytest.mark.slow
def test_reading_needs_nothing_of_writing(written: Synthetic) -> None:
    code = (
        "import sys\n"
        "import latentcache.reading.loader.loader\n"
        f"loader = latentcache.reading.loader.loader.LatentLoader({written.url!r}, batch_size=2)\n"
        "assert sum(len(batch['key']) for batch in loader) == 14\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'ray', 'decord', 'av', 'diffusers', 'transformers'}))\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith('latentcache.')}\n"
        "print(sorted(ours & {'encoders', 'decoders', 'planning', 'running', 'corpus', 'inspecting'}))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "[]"]
