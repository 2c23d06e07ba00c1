from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.errors import CacheError, ConfigError, CorruptionError, StorageError
from latentcache.format.paths import CACHE_JSON, INDEX, sample_path
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.format.snapshot import build_index, publish
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.reading.cache import Cache, open_cache
from latentcache.storage.folder import Storage
from tests.tools.fields import cache_of, grow, relabel
from tests.tools.synthetic import (
    Synthetic,
    facts_of,
    make_manifest,
    make_spec,
    retire,
    write_cache,
    write_manifest,
    write_shard,
)

FAILED = [("5x32x32", 1), ("1x32x48", 4)]


def check_stored(stored: torch.Tensor, key: str, written: Synthetic) -> None:
    expected, found = written.arrays[key], as_numpy(stored)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_samples_come_in_order_without_the_failed(name: str, dtype: str, tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), format=name, dtype=dtype, failed=FAILED)
    cache = open_cache(str(tmp_path))
    assert len(cache) == len(written.arrays) == 14
    assert [cache[i]["key"] for i in range(len(cache))] == list(written.arrays)
    for i in range(len(cache)):
        check_stored(cache.stored(i), cache[i]["key"], written)


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), dtype="uint16", stored="ids")
    cache = open_cache(str(tmp_path))
    assert (cache.stored(-1).dtype, cache.stored(-1).shape) == (torch.uint16, (2, 4, 4))
    check_stored(cache.stored(-1), cache[-1]["key"], written)
    assert cache[-1]["latents"].dtype == torch.int64
    assert torch.equal(cache[-1]["latents"], cache.stored(-1).to(torch.int64))


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
        with pytest.raises(IndexError, match=f"sample {wrong} of 14"):
            cache[wrong]
    assert len(list(cache)) == 14  # by the old protocol of sequences, which ends with IndexError


@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_several_are_read_at_once_in_the_order_asked_for(name: str, tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), format=name, failed=FAILED)
    cache = open_cache(str(tmp_path))
    wanted = [13, 0, 5, 5, -1, 2, 7, 6]
    samples = cache.stored_samples(wanted)
    assert [s["key"] for s in samples] == [list(written.arrays)[i] for i in wanted]
    for sample in samples:
        check_stored(sample["latents"], sample["key"], written)
    assert samples[2]["latents"].data_ptr() != samples[3]["latents"].data_ptr()


def test_samples_are_found_by_key(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), failed=FAILED)
    cache = open_cache(str(tmp_path))
    for key in written.arrays:
        assert cache.sample(key)["key"] == key
    with pytest.raises(KeyError, match="no ok clip has the key '5x32x32-0001'"):
        cache.sample("5x32x32-0001")


def test_buckets_say_what_is_committed(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), failed=FAILED)
    written.storage.delete(sample_path("5x32x32", 2))
    publish(written.storage, build_index(written.storage, written.manifest))
    bucket = open_cache(str(tmp_path)).buckets["5x32x32"]
    assert (bucket.shape, bucket.num_ok, bucket.num_clips) == ((4, 2, 4, 4), 7, 8)
    assert (bucket.num_shards, bucket.stored_bytes > 0) == (2, True)
    assert list(open_cache(str(tmp_path)).buckets) == ["1x32x48", "5x32x32"]


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (pa.array([1, 2, 3, 4]), pa.float64()),
        (pa.nulls(4), pa.float64()),
        (["a"] * 4, None),
    ],
)
def test_kept_columns_may_change_their_type_while_a_cache_grows(
    score: Any, expected: pa.DataType | None, tmp_path: Path
) -> None:
    written = write_cache(str(tmp_path))
    path = sample_path("5x32x32", 0)
    table = from_parquet(written.storage.read(path))
    at = table.column_names.index("score")
    facts, table = facts_of(table), table.set_column(at, "score", pa.array(score))
    written.storage.write(path, to_parquet(table, facts))
    cache = open_cache(str(tmp_path))
    if expected is None:
        with pytest.raises(CacheError, match=r"kept columns have types that .*score.*former type"):
            cache.table()
    else:
        assert cache.table().schema.field("score").type == expected


@pytest.mark.parametrize("bare", [1, 2])
def test_columns_are_those_that_any_step_has_kept(
    bare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = {"1x32x48": 40, "5x32x32": 40}
    options: dict[str, Any] = {"segment": lambda *_: 0, "first_shards": 4, "bare": bare}
    cache = open_cache(write_cache(str(tmp_path), buckets=buckets, **options).url)
    read, looked_at = cache._read_table, []
    monkeypatch.setattr(cache, "_read_table", lambda *at: (looked_at.append(at), read(*at))[1])
    assert cache.column_names == [*SAMPLE_SCHEMA.names, "score", "per_frame"]
    assert cache.batch_columns == [*SAMPLE_SCHEMA.names, "score", "segment", "at", "time_ids"]
    assert not looked_at, "generations say it"
    assert pickle.loads(pickle.dumps(cache)).column_names == cache.column_names
    old, new = cache["5x32x32-0003"], cache["5x32x32-0016"]
    assert old.keys() == new.keys()
    with_values, without = (new, old) if bare == 1 else (old, new)
    assert [without[name] for name in ("score", "segment", "at")] == [None] * 3
    assert with_values["at"].tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_table_is_damage_of_its_own_clips_only(tmp_path: Path) -> None:
    buckets = {"1x32x48": 40, "5x32x32": 40}
    storage = write_cache(str(tmp_path), buckets=buckets, first_shards=4).storage
    for shard in (0, 4):  # the first of each generation
        storage.write(sample_path("1x32x48", shard), b"lost")
    cache = open_cache(str(tmp_path))
    assert cache.kept_names == ["score"]
    assert [(s["key"], s["score"]) for s in cache[4:6]] == [
        ("1x32x48-0004", 4.0),
        ("1x32x48-0005", 5.0),
    ]
    with pytest.raises(CorruptionError, match=r"samples/1x32x48/000000\.parquet cannot be read"):
        cache[0]


def test_a_key_is_found_whatever_table_of_other_clips_is_damaged(tmp_path: Path) -> None:
    storage = write_cache(str(tmp_path)).storage
    keys = open_cache(str(tmp_path)).keys()
    table = sample_path("5x32x32", 1)
    storage.delete(table)
    cache = open_cache(str(tmp_path))
    assert cache.number(keys[-1]) == len(keys) - 1
    assert cache[keys[-1]]["key"] == keys[-1]
    for look in (cache.keys, lambda: "5x32x32-0004" in cache, lambda: cache["no such key"]):
        with pytest.raises(CorruptionError, match=f"{table} is missing"):
            look()


def test_one_table_is_read_for_a_clip_however_often_the_cache_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = cache_of(tmp_path, ["a", "b"], texts=[["x"], ["y"]])
    planned = relabel(grow(grow(planned, ["c"], lost=["texts"]), ["d"]), {"v1#0": "B"})
    storage, bucket = planned.storage, planned.manifest.buckets[0].name
    for shard in (1, 2):
        storage.write(sample_path(bucket, shard), b"lost")
    cache = pickle.loads(pickle.dumps(open_cache(storage.url)))
    read, looked_at = cache._read_table, []
    monkeypatch.setattr(cache, "_read_table", lambda *at: (looked_at.append(at), read(*at))[1])
    assert cache.sample_schema.field("texts").type == pa.list_(pa.string())
    assert [(s["key"], s["caption"], s["texts"]) for s in cache[:2]] == [
        ("v0#0", "a", ["x"]),
        ("v1#0", "B", ["y"]),
    ]
    assert looked_at == [(bucket, 0)]


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


@pytest.mark.slow
def test_a_snapshot_of_another_cache_is_refused(tmp_path: Path) -> None:
    other = write_cache(str(tmp_path / "other"), stored="moments")
    write_cache(str(tmp_path / "cache"))
    Storage(str(tmp_path / "cache")).write(INDEX, other.storage.read(INDEX))
    with pytest.raises(CacheError, match="the snapshot does not fit: it is of another cache"):
        open_cache(str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ({"5x32x32": 11}, "it lists buckets that are not planned: 1x32x48"),
        ({"1x32x48": 5, "5x32x32": 8}, "it lists shards that are not planned"),
    ],
)
def test_a_snapshot_of_shards_that_are_not_planned_is_refused(
    buckets: dict[str, int], message: str, tmp_path: Path
) -> None:
    write_cache(str(tmp_path))
    fewer = make_manifest(spec=make_spec(), buckets=buckets)
    write_manifest(Storage(str(tmp_path)), fewer)
    with pytest.raises(CacheError, match=message):
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


@pytest.mark.parametrize("failed", [{0, 1, 2, 3}, {1}])
def test_a_sample_table_of_other_clips_than_the_snapshot_counts_is_refused(
    failed: set[int], tmp_path: Path
) -> None:
    """Nothing replaces a table, so another number of clips is damage; by it samples are numbered."""
    written = write_cache(str(tmp_path), buckets={"5x32x32": 4}, failed=[("5x32x32", 0)])
    cache = open_cache(str(tmp_path))
    layout, recipe = written.manifest.layouts()["5x32x32"], written.manifest.fingerprint
    sample = next(iter(written.arrays.values()))
    rows = [None if n in failed else sample for n in range(4)]
    rows = rows if 0 in failed else rows[:-1]
    write_shard(cache.storage, "zarr", layout, 0, rows, recipe)
    reads = (lambda: cache[0], lambda: cache.sample("5x32x32-0002"), cache.table)
    for read in reads:
        with pytest.raises(CorruptionError, match=r"000000\.parquet has \d .*the snapshot says \d"):
            read()


def test_a_url_without_a_package_or_access_is_one_error(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, StorageError), match="nosuch"):
        open_cache("nosuch://bucket/cache")


def test_it_opens_from_memory_with_options_and_pickles(tmp_path: Path) -> None:
    written = write_cache(f"memory://{tmp_path.name}-{id(tmp_path)}")
    assert open_cache(written.url)[:0] == []
    cache = open_cache(written.url)
    again = pickle.loads(pickle.dumps(cache))
    assert isinstance(again, Cache)
    check_stored(again.stored(7), again[7]["key"], written)
    assert again.snapshot == cache.snapshot


@pytest.mark.slow
def test_threads_share_it(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), failed=FAILED)
    cache = open_cache(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        numbers = list(range(14)) * 10
        for number, stored in zip(numbers, pool.map(cache.stored, numbers), strict=True):
            check_stored(stored, list(written.arrays)[number], written)


@pytest.mark.slow
def test_the_snapshot_changes_with_what_it_lists(tmp_path: Path) -> None:
    write_cache(str(tmp_path))
    one = open_cache(str(tmp_path)).snapshot
    assert open_cache(str(tmp_path)).snapshot == one
    write_cache(str(tmp_path), failed=FAILED)
    assert open_cache(str(tmp_path)).snapshot != one


@pytest.mark.slow
def test_snapshots_of_all_generations_can_be_read(tmp_path: Path) -> None:
    """Rows that no longer count are still there for who opened the cache before, or says when."""
    written = write_cache(str(tmp_path), failed=FAILED)
    before = open_cache(str(tmp_path))
    manifest = retire(written, [("5x32x32", 0, 2), ("1x32x48", 1, 0)])
    assert before.newest() is before  # the snapshot still shows the generation before
    publish(written.storage, build_index(written.storage, manifest))
    after = open_cache(str(tmp_path))
    kept = [key for key in written.arrays if key != "5x32x32-0002"]
    for cache in (after, before.newest(), before.at(2, after.shard_bits, after.snapshot)):
        assert [cache[i]["key"] for i in range(len(cache))] == kept
        assert cache.snapshot == after.snapshot != before.snapshot
        assert sorted(cache.table(["key"])["key"].to_pylist()) == sorted([*kept, "5x32x32-0001"])
        with pytest.raises(KeyError, match="no ok clip has the key '5x32x32-0002'"):
            cache.sample("5x32x32-0002")
    for cache in (before, after.at(1, before.shard_bits, before.snapshot)):
        assert [cache[i]["key"] for i in range(len(cache))] == list(written.arrays)
        check_stored(cache.stored("5x32x32-0002"), "5x32x32-0002", written)
        assert cache.buckets["5x32x32"].num_ok == after.buckets["5x32x32"].num_ok + 1


def test_a_snapshot_that_never_was_is_refused(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path))
    cache = open_cache(str(tmp_path))
    for generation in (0, 2):
        with pytest.raises(CacheError, match=f"has 1 generations, .*of generation {generation}"):
            cache.at(generation, cache.shard_bits, "0" * 64)
    with pytest.raises(CacheError, match="its shards hold other clips than they did"):
        cache.at(1, cache.shard_bits, "0" * 64)
    written.storage.delete(sample_path("5x32x32", 2))
    publish(written.storage, build_index(written.storage, written.manifest))
    fewer = open_cache(str(tmp_path))
    with pytest.raises(CorruptionError, match=r"samples/5x32x32/000002\.parquet is gone"):
        fewer.at(1, cache.shard_bits, cache.snapshot)


def test_the_package_exports_what_a_reader_needs() -> None:
    assert set(latentcache.__all__) <= set(dir(latentcache))
    assert all(getattr(latentcache, name) is not None for name in latentcache.__all__)
    assert latentcache.open_cache is open_cache
    assert issubclass(latentcache.CorruptionError, latentcache.CacheError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        latentcache.nothing  # noqa: B018
