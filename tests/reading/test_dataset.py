"""The cache as a map-style dataset: what a sample's latents are, and batches for torch's DataLoader."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.sample import Sample
from tests.tools.synthetic import write_cache

FAILED = [("5x32x32", 1), ("1x32x48", 4)]


@pytest.fixture(scope="module", params=["moments", "mean", "ids"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    dtype = "uint16" if request.param == "ids" else "bfloat16"
    folder = str(tmp_path_factory.mktemp(request.param))
    write_cache(folder, stored=request.param, dtype=dtype, failed=FAILED)
    return open_cache(folder)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = str(tmp_path_factory.mktemp("moments"))
    write_cache(folder, stored="moments", failed=FAILED)
    return open_cache(folder)


def of_loader(cache: Cache, epoch: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    loader = latentcache.LatentLoader(cache, batch_size=3, **options)
    loader.set_epoch(epoch)
    found: dict[str, torch.Tensor] = {}
    for batch in loader:
        found.update(zip(batch["key"], batch["latents"], strict=True))
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.slow
def test_latents_mean_the_same_by_number_by_key_and_in_a_loader(cache: Cache) -> None:
    expected = of_loader(cache)
    assert len(expected) == len(cache) == 14
    for number, key in enumerate(cache.keys()):
        for sample in (cache[number], cache[number - len(cache)], cache[key], cache.sample(key)):
            assert sample["key"] == key
            assert same(sample["latents"], expected[key])
        assert sample["latents"].is_contiguous()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"posterior": "mode"},
        {"normalise": False},
        {"posterior": "mode", "normalise": False},
        {"dtype": "float32", "seed": 7},
        {"frames": 1},
    ],
)
def test_a_dataset_takes_a_loaders_options(options: dict[str, Any], moments: Cache) -> None:
    dataset = moments.dataset(**options)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        expected = of_loader(moments, epoch, **options)
        assert all(same(sample["latents"], expected[sample["key"]]) for sample in dataset)


@pytest.mark.slow
def test_stored_values_are_those_on_storage(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), stored="moments")
    cache = open_cache(str(tmp_path))
    for number, key in enumerate(cache.keys()):
        for stored in (cache.stored(number), cache.stored(key)):
            assert as_numpy(stored).tobytes() == written.arrays[key].tobytes()
    with pytest.raises(KeyError, match="no ok clip has the key 'nothing'"):
        cache.stored("nothing")
    with pytest.raises(IndexError, match="sample 16 of 16"):
        cache.stored(16)


@pytest.mark.slow
def test_keys_and_slices(cache: Cache) -> None:
    keys = cache.keys()
    assert keys == [sample["key"] for sample in cache[:]]
    assert [sample["key"] for sample in cache[-3::2]] == keys[-3::2]
    assert cache[20:] == []
    assert keys[3] in cache
    assert "nothing" not in cache
    assert 3 not in cache
    with pytest.raises(KeyError, match="no ok clip has the key 'nothing'"):
        cache["nothing"]
    for wrong in ([1, 2], 1.5, None, True, np.True_, torch.tensor(True), b"key"):
        for read in (cache.__getitem__, cache.stored, cache.dataset().__getitem__):
            with pytest.raises(TypeError, match="samples have numbers and keys"):
                read(wrong)
    for wrong in (3, None, True):
        with pytest.raises(KeyError, match=f"no ok clip has the key {wrong}"):
            cache.number(wrong)


def test_where_chooses_and_numbers_count_what_it_chose(moments: Cache) -> None:
    dataset = moments.dataset(where="score >= 2 and caption is not null")
    table = moments.table().to_pylist()
    expected = [
        row["key"]
        for row in table
        if row["status"] == "ok" and row["score"] >= 2 and row["caption"] is not None
    ]
    assert 0 < len(expected) < len(moments)
    assert [sample["key"] for sample in dataset] == expected
    assert dataset[-1]["key"] == dataset[expected[-1]]["key"] == expected[-1]
    left_out = next(key for key in moments.keys() if key not in expected)  # noqa: SIM118
    with pytest.raises(KeyError, match="not among those that `where`"):
        dataset[left_out]
    assert len(moments.dataset(where="score < 0")) == 0


def test_numpy_arrays_have_the_bfloat16_of_ml_dtypes(moments: Cache) -> None:
    tensor, array = moments[3]["latents"], moments.dataset(numpy=True)[3]["latents"]
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())
    np.testing.assert_array_equal(latentcache.to_numpy(tensor[:, :, :2].double()), array[:, :, :2])
    batch = latentcache.collate([moments.dataset(numpy=True)[n] for n in (5, 6)])
    assert batch["latents"].dtype == ml_dtypes.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("where", [None, "score != 3"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_a_loader(where: str | None, shuffle: bool, moments: Cache) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "uneven": "pad"}
    for rank in range(3):
        options |= {"rank": rank, "world_size": 3}
        loader = latentcache.LatentLoader(moments, 2, where=where, **options)
        dataset = moments.dataset(where=where, seed=3)
        sampler = dataset.batch_sampler(2, **options)
        data = DataLoader(dataset, batch_sampler=sampler, collate_fn=latentcache.collate)
        assert len(data) == len(loader)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            sampler.set_epoch(epoch)
            for found, expected in zip(data, loader, strict=True):
                assert same(found["latents"], expected["latents"])
                assert {name: found[name] for name in expected if name != "latents"} == {
                    name: value for name, value in expected.items() if name != "latents"
                }


def test_an_iteration_continues_after_batches_that_were_taken(moments: Cache) -> None:
    sampler = moments.dataset().batch_sampler(2)
    whole = list(sampler)
    sampler.set_epoch(0, num_taken=3)
    assert len(sampler) == len(whole) - 3
    assert list(sampler) == whole[3:]
    assert list(sampler) == whole


def test_samples_of_several_buckets_are_no_batch(moments: Cache) -> None:
    data = DataLoader(moments.dataset(), batch_size=len(moments), collate_fn=latentcache.collate)
    with pytest.raises(
        ConfigError, match=r"1x32x48, 5x32x32 .* batch_sampler=dataset.batch_sampler"
    ):
        next(iter(data))


@pytest.mark.parametrize("bare", [1, 2])
def test_clips_of_before_and_after_a_kept_column_make_a_batch(bare: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"segment": lambda *_: 0, "first_shards": 1, "bare": bare}
    cache = open_cache(write_cache(str(tmp_path), buckets={"9x32x32": 8}, **options).url)
    dataset = cache.dataset(frames=5, numpy=True)
    old, new = dataset[0], dataset[7]
    with_values = new if bare == 1 else old
    assert isinstance(with_values["at"], np.ndarray)
    assert with_values["at"].tolist() == [0, 1, 2, 3, 4]
    for samples in ([old, new], [new, old]):
        batch = latentcache.collate(samples)
        assert batch.keys() == with_values.keys()
        known = [sample is with_values for sample in samples]
        score = 7.0 if bare == 1 else 0.0
        assert batch["score"] == [score if has else None for has in known]
        assert [value is not None for value in batch["at"]] == known


def test_what_only_some_samples_have_is_none_in_a_batch(moments: Cache) -> None:
    samples = moments[:2]
    samples[1]["mine"] = 1
    assert latentcache.collate(samples)["mine"] == [None, 1]
    assert latentcache.collate(samples[::-1])["mine"] == [1, None]


def test_a_field_that_one_sample_has_read_is_read_of_the_others() -> None:
    def read(number: int) -> Mapping[str, Any]:
        if number == 2:
            raise KeyError("umt5")
        return {"umt5": torch.full((3,), number)}

    values = {"latents": torch.zeros(1), "bucket": "1x8x8"}
    samples = [Sample(values, lambda _, n=n: read(n)) for n in range(3)]
    assert samples[1]["umt5"].tolist() == [1, 1, 1]
    assert latentcache.collate(samples[:2])["umt5"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert latentcache.collate(samples)["umt5"][2] is None
    assert "umt5" not in latentcache.collate([Sample(values, lambda _: read(0))])


def test_arguments_that_make_no_sense_are_refused(moments: Cache) -> None:
    for options, said in [
        ({"posterior": "mean"}, "posterior 'mean' is not one of sample, mode"),
        ({"dtype": "bfloat_16"}, "Did you mean 'bfloat16'"),
        ({"where": "caption > 3"}, "these do not compare"),
        ({"frames": 0}, "frames is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"numpy": "no"}, "numpy is 'no': it must be True or False"),
    ]:
        with pytest.raises(ConfigError, match=said):
            moments.dataset(**options)
    for options, said in [
        ({"batch_size": 0}, "^batch_size is 0"),
        ({"rank": 1}, "rank 1 of world_size 1"),
        ({"shuffle": "no"}, "shuffle is 'no': it must be True or False"),
        ({"drop_last": np.zeros(2)}, "drop_last is .*: it must be True or False"),
        ({"batch_size": 9, "drop_last": True}, "leave out whole buckets .*: 1x32x48"),
    ]:
        with pytest.raises(ConfigError, match=said):
            moments.dataset().batch_sampler(**options)
    with pytest.raises(ConfigError, match=r"epoch is 1\.5"):
        moments.dataset().set_epoch(1.5)


def test_it_pickles(moments: Cache) -> None:
    dataset = moments.dataset(posterior="mode", dtype="float32", where="score > 2")
    again = pickle.loads(pickle.dumps(dataset))
    assert [s["key"] for s in again] == [s["key"] for s in dataset]
    assert same(again[1]["latents"], dataset[1]["latents"])
    assert "LatentDataset(9 clips of Cache(" in repr(again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_that_persist_draw_for_each_epoch(start_method: str, moments: Cache) -> None:
    dataset = moments.dataset()
    sampler = dataset.batch_sampler(2)
    data = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=latentcache.collate,
        num_workers=2 if start_method == "fork" else 1,
        persistent_workers=True,
        multiprocessing_context=start_method,
    )
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected = of_loader(moments, epoch)
        for batch in data:
            for key, latents in zip(batch["key"], batch["latents"], strict=True):
                assert same(latents, expected[key])
