from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.errors import CacheError, ConfigError, CorruptionError, StorageError
from latentcache.format.manifest import seal_json
from latentcache.format.paths import CACHE_JSON, sample_path
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.format.snapshot import build_index, publish
from latentcache.reading.cache import Cache, open_cache
from latentcache.storage.folder import Storage
from tests.tools.synthetic import Synthetic, write_cache, write_shard

FAILED = [("5x32x32", 1), ("1x32x48", 4)]


def check_sample(sample: dict[str, Any], written: Synthetic) -> None:
    expected = written.arrays[sample["key"]]
    found = as_numpy(sample["latents"])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_samples_come_in_order_without_the_failed(name: str, dtype: str, tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), format=name, dtype=dtype, failed=FAILED)
    cache = open_cache(str(tmp_path))
    assert len(cache) == len(written.arrays) == 14
    assert [cache[i]["key"] for i in range(len(cache))] == list(written.arrays)
    for i in range(len(cache)):
        check_sample(cache[i], written)


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), dtype="uint16", stored="ids")
    cache = open_cache(str(tmp_path))
    assert (cache[-1]["latents"].dtype, cache[-1]["latents"].shape) == (torch.uint16, (2, 4, 4))
    check_sample(cache[-1], written)


def test_a_sample_says_what_it_is(tmp_path: Path) -> None:
    write_cache(str(tmp_path))
    sample = open_cache(str(tmp_path))[5]
    del sample["latents"]
    assert sample == {
        "key": "5x32x32-0000",
        "caption": "caption of 0",
        "source": "5x32x32/0.mp4",
        "bucket": "5x32x32",
        "start_s": 0.0,
        "end_s": 0.625,
        "score": 0.0,
    }


def test_numbers_are_those_of_a_list(tmp_path: Path) -> None:
    write_cache(str(tmp_path), failed=FAILED)
    cache = open_cache(str(tmp_path))
    assert cache[-1]["key"] == cache[13]["key"] == "5x32x32-0010"
    assert cache[np.int64(-14)]["key"] == "1x32x48-0000"
    for wrong in (14, -15):
        with pytest.raises(IndexError, match=f"sample {wrong} of a cache of 14"):
            cache[wrong]
    assert len(list(cache)) == 14  # by the old protocol of sequences, which ends with IndexError


@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_several_are_read_at_once_in_the_order_asked_for(name: str, tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), format=name, failed=FAILED)
    cache = open_cache(str(tmp_path))
    wanted = [13, 0, 5, 5, -1, 2, 7, 6]
    samples = cache.__getitems__(wanted)
    assert [s["key"] for s in samples] == [list(written.arrays)[i] for i in wanted]
    for sample in samples:
        check_sample(sample, written)
    assert samples[2]["latents"].data_ptr() != samples[3]["latents"].data_ptr()


def test_samples_are_found_by_key(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), failed=FAILED)
    cache = open_cache(str(tmp_path))
    for key in written.arrays:
        assert cache.sample(key)["key"] == key
    with pytest.raises(KeyError, match="no ok clip has the key '5x32x32-0001'"):
        cache.sample("5x32x32-0001")


def test_buckets_say_what_is_committed(tmp_path: Path) -> None:
    write_cache(str(tmp_path), failed=FAILED)
    storage = Storage(str(tmp_path))
    storage.delete(sample_path("5x32x32", 2))
    publish(storage, build_index(storage))
    bucket = open_cache(str(tmp_path)).buckets["5x32x32"]
    assert (bucket.shape, bucket.num_ok, bucket.num_clips) == ((4, 2, 4, 4), 7, 8)
    assert (bucket.num_shards, bucket.stored_bytes > 0) == (2, True)
    assert list(open_cache(str(tmp_path)).buckets) == ["1x32x48", "5x32x32"]


def test_the_table_has_every_clip_and_every_rejected_source(tmp_path: Path) -> None:
    write_cache(str(tmp_path), failed=FAILED, rejected=3)
    table = open_cache(str(tmp_path)).table()
    assert table.column_names == [*SAMPLE_SCHEMA.names, "score"]
    status = table.group_by("status").aggregate([("key", "count")]).to_pylist()
    assert {s["status"]: s["key_count"] for s in status} == {"ok": 14, "failed": 5}
    assert table["bucket"].null_count == 3
    some = open_cache(str(tmp_path)).table(["reason", "key"])
    assert some.column_names == ["reason", "key"]
    assert some["reason"].to_pylist()[-3:] == ["unreadable"] * 3
    with pytest.raises(CacheError, match=r"no column 'statu'\. Did you mean 'status'"):
        open_cache(str(tmp_path)).table(["statu"])


def test_latents_that_a_model_cannot_take_are_refused_with_both_specs(tmp_path: Path) -> None:
    write_cache(str(tmp_path), channels=16)
    assert len(open_cache(str(tmp_path), expect={"channels": 16, "stride": (4, 8, 8)})) == 16
    with pytest.raises(CacheError) as caught:
        open_cache(str(tmp_path), expect={"channels": 3, "stored": "mean"})
    message = str(caught.value)
    assert "what differs: channels" in message
    assert 'expected: channels 3, stored "mean"' in message
    assert 'in the cache: channels 16, stored "mean" (Synthetic, 16 channels' in message
    assert "pixels with 3 channels reaching a model that expects 16" in message
    with pytest.raises(ConfigError, match=r"no 'channel'\. Did you mean 'channels'"):
        open_cache(str(tmp_path), expect={"channel": 16})


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no cache here"):
        open_cache(str(tmp_path))
    write_cache(str(tmp_path), published=False)
    with pytest.raises(CacheError, match="no snapshot yet"):
        open_cache(str(tmp_path))
    Storage(str(tmp_path)).write(CACHE_JSON, b"<html>")
    with pytest.raises(CacheError, match=r"is not the cache\.json of a cache"):
        open_cache(str(tmp_path))


def test_a_snapshot_of_another_cache_is_refused(tmp_path: Path) -> None:
    write_cache(str(tmp_path))
    storage = Storage(str(tmp_path))
    data = json.loads(storage.read(CACHE_JSON))
    del data["buckets"][0]
    storage.write(CACHE_JSON, seal_json(data))
    with pytest.raises(CacheError, match=r"lists buckets that cache\.json does not have: 1x32x48"):
        open_cache(str(tmp_path))


@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_damage_names_the_clip(name: str, tmp_path: Path) -> None:
    write_cache(str(tmp_path), format=name, buckets={"5x32x32": 4})
    cache = open_cache(str(tmp_path))
    chunk = cache.rows("5x32x32", 0).chunks[2]
    path = next(p for p in (tmp_path / "latents").rglob("*") if p.is_file() and p.suffix != ".json")
    data = bytearray(path.read_bytes())
    data[chunk.offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"^clip '5x32x32-0002': shard 5x32x32/0, row 2: its"):
        cache.__getitems__([0, 1, 2, 3])
    assert cache[3]["key"] == "5x32x32-0003"
    path.unlink()
    with pytest.raises(CorruptionError, match=r"^clip '5x32x32-0003': .* the object is missing"):
        cache[3]


def test_a_sample_table_that_is_gone_is_named(tmp_path: Path) -> None:
    write_cache(str(tmp_path))
    cache = open_cache(str(tmp_path))
    (tmp_path / sample_path("5x32x32", 0)).unlink()
    with pytest.raises(CorruptionError, match=r"samples/5x32x32/000000\.parquet is missing"):
        cache[5]


def test_a_shard_that_shrank_since_is_noticed(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), buckets={"5x32x32": 4})
    cache = open_cache(str(tmp_path))
    layout, recipe = written.manifest.layouts()["5x32x32"], written.manifest.fingerprint
    write_shard(cache.storage, "zarr", layout, 0, [None] * 4, recipe)
    with pytest.raises(CacheError, match="fewer than when the cache was opened"):
        cache[0]


def test_a_url_without_a_package_or_access_is_one_error(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, StorageError), match="nosuch"):
        open_cache("nosuch://bucket/cache")


def test_it_opens_from_memory_with_options_and_pickles(tmp_path: Path) -> None:
    written = write_cache(f"memory://{tmp_path.name}-{id(tmp_path)}")
    cache = open_cache(written.url)
    again = pickle.loads(pickle.dumps(cache))
    assert isinstance(again, Cache)
    check_sample(again[7], written)
    assert again.snapshot == cache.snapshot


def test_threads_share_it(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), failed=FAILED)
    cache = open_cache(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for sample in pool.map(cache.__getitem__, list(range(14)) * 10):
            check_sample(sample, written)


def test_the_snapshot_changes_with_what_it_lists(tmp_path: Path) -> None:
    write_cache(str(tmp_path))
    one = open_cache(str(tmp_path)).snapshot
    assert open_cache(str(tmp_path)).snapshot == one
    write_cache(str(tmp_path), failed=FAILED)
    assert open_cache(str(tmp_path)).snapshot != one


def test_the_package_exports_what_a_reader_needs() -> None:
    assert set(latentcache.__all__) <= set(dir(latentcache))
    assert all(getattr(latentcache, name) is not None for name in latentcache.__all__)
    assert latentcache.open_cache is open_cache
    assert issubclass(latentcache.CorruptionError, latentcache.CacheError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        latentcache.nothing  # noqa: B018
