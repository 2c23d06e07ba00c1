"""Verify --repair and --sample: what can be repaired is, and clips are encoded again to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import latentcache
from latentcache.core.dtypes import numpy_dtype
from latentcache.core.records import ShardId
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import (
    INDEX,
    plan_path,
    rejected_path,
    sample_path,
    sources_path,
)
from latentcache.format.snapshot import build_index, publish, read_index, to_index
from latentcache.format.tables import from_parquet
from latentcache.inspecting.verify import verify, write_derived
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache, reopen_cache
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, read_files, run_job, samples_of
from tests.tools.copied import reopened
from tests.tools.damage import flip, run_verify, shard_file, shard_objects
from tests.tools.other_arrow import another_arrow
from tests.tools.planned import commit_rows, fill_cache, make_cache, plan_cache
from tests.tools.s3 import S3, SECRET, s3_fixture, s3_server_fixture  # noqa: F401 fixtures

pytestmark = pytest.mark.usefixtures("kept_pools")

BUCKET = "5x64x96"


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    return make_cache(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_a_damaged_clip_is_planned_again_and_no_object_is_replaced(
    tmp_path: Path, name: str
) -> None:
    cache = make_cache(tmp_path, format=name)
    table = from_parquet(cache.storage.read(sample_path(BUCKET, 1)))
    place = {key: table[key][1].as_py() for key in ("key", "row", "offset")}
    file = shard_file(cache, ShardId(BUCKET, 1))
    flip(file, place["offset"] + 5)
    findings = verify(cache.storage)
    assert findings.damaged == {ShardId(BUCKET, 1): {place["row"]}}
    before, keys = read_files(tmp_path / "cache"), latentcache.open_cache(cache.storage.url)
    assert repair_cache(cache.storage, findings.damaged) == 1
    after = read_files(tmp_path / "cache")
    pointers = {INDEX, *(path for path in before if path.endswith("zarr.json"))}
    assert {path: after.get(path) for path in before.keys() - pointers} == {
        path: before[path] for path in before.keys() - pointers
    }
    opened = latentcache.open_cache(cache.storage.url)
    assert len(opened) == len(keys) - 1
    assert place["key"] not in opened.table(["key"])["key"].to_pylist()
    again = verify(cache.storage)
    assert (again.problems, again.notes) == ([], ["1 of 5 shards are still to be encoded"])
    assert repair_cache(cache.storage, findings.damaged) == 0
    fill_cache(replace(cache, manifest=opened.manifest))
    whole = latentcache.open_cache(cache.storage.url)
    assert len(whole) == len(keys)
    assert whole.sample(place["key"])["key"] == place["key"]


@pytest.mark.slow
def test_a_damaged_sample_table_is_written_again_from_its_object(
    cache: PlannedCache, tmp_path: Path
) -> None:
    before = read_files(tmp_path / "cache")
    flip(tmp_path / "cache" / sample_path(BUCKET, 1), 70)
    findings = verify(cache.storage)
    assert (findings.damaged, findings.derived) == ({}, [ShardId(BUCKET, 1)])
    write_derived(cache.storage, findings)
    assert read_files(tmp_path / "cache") == before


def test_a_sample_table_and_one_of_its_clips_are_repaired_at_once(cache: PlannedCache) -> None:
    url, shard = Path(cache.storage.url), ShardId(BUCKET, 1)
    num_clips = len(latentcache.open_cache(str(url)))
    flip(url / sample_path(*shard), 70)
    flip(shard_file(cache, shard), 10)
    out, _ = run_verify(url, "--repair", status=3)
    assert "repaired 1 clips are planned again, and 1 sample tables were written again" in out
    assert len(latentcache.open_cache(str(url))) == num_clips - 1
    assert "1 of 5 shards are still to be encoded" in run_verify(url)[0]
    fill_cache(reopened(cache))
    assert len(latentcache.open_cache(str(url))) == num_clips
    assert "0 problems" in run_verify(url)[0]


def test_the_snapshot_says_the_size_of_a_table_that_was_written_again(tmp_path: Path) -> None:
    with another_arrow():
        cache = make_cache(tmp_path)
    url, path = Path(cache.storage.url), sample_path(BUCKET, 1)
    before = len(cache.storage.read(path))
    flip(url / path, 70)
    out, _ = run_verify(url, "--repair", status=3)
    assert "1 sample tables were written again" in out
    assert "index.parquet" not in out
    assert len(cache.storage.read(path)) != before
    assert "0 problems" in run_verify(url)[0]


def damage_index(cache: PlannedCache) -> None:
    flip(Path(cache.storage.url) / INDEX, 60)


def miscount(cache: PlannedCache) -> None:
    rows = read_index(cache.storage).to_pylist()
    rows[2]["num_ok"] -= 1
    publish(cache.storage, to_index(rows, cache.manifest))


def lose_a_shard(cache: PlannedCache) -> None:
    cache.storage.delete(sample_path(BUCKET, 1))


@pytest.mark.parametrize("happens", [damage_index, miscount, lose_a_shard])
def test_a_wrong_snapshot_is_written_again(
    cache: PlannedCache, happens: Callable[[PlannedCache], None]
) -> None:
    url = Path(cache.storage.url)
    happens(cache)
    assert f"problem  {INDEX}: " in run_verify(url, status=3)[0]
    out, _ = run_verify(url, "--repair", status=3)
    assert f"repaired {INDEX} was written again from the sample tables" in out
    assert "each says above what repairs it" not in out
    assert "0 problems" in run_verify(url)[0]
    built = build_index(cache.storage, cache.manifest)
    assert read_index(cache.storage).equals(built, check_metadata=True)


def test_nothing_is_repaired_while_what_was_retired_is_unknown(cache: PlannedCache) -> None:
    url = Path(cache.storage.url)
    repair_cache(cache.storage, {ShardId(BUCKET, 1): [0]})
    (table,) = (url / "retired").iterdir()
    flip(table, 60)
    flip(url / INDEX, 60)
    before = read_files(url)
    _, err = run_verify(url, "--repair", status=2)
    assert f"cannot be repaired while its retired/{table.name} is damaged" in err
    assert read_files(url) == before


@pytest.fixture(name="run", scope="module")
def run_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a cache of it, as a run left them."""
    folder = tmp_path_factory.mktemp("run")
    corpus = make_corpus(folder / "corpus", 3)
    run_job("precompute", make_config(folder, corpus, str(folder / "cache")), status=3)
    return folder


@pytest.mark.slow
def test_repair_and_resume_give_the_clips_that_were(run: Path) -> None:
    cache, manifest = run / "cache", read_manifest(Storage(str(run / "cache")))
    before, clips = read_files(cache), samples_of(cache)
    flip(next(shard_objects(cache, BUCKET))[0], 7)
    flip(cache / sample_path(BUCKET, 1), 70)
    flip(cache / INDEX, 70)
    out, _ = run_verify(cache, status=3)
    for path in (f"latents/{BUCKET}/c/0/0/0/0/0", sample_path(BUCKET, 1), INDEX):
        assert f"problem  {path}: " in out
    assert f"latentcache verify {cache} --repair" in out
    out, _ = run_verify(cache, "--repair", status=3)
    assert "repaired 1 clips are planned again, and 1 sample tables were written again" in out
    assert len(latentcache.open_cache(str(cache))) == len(clips) - 1
    assert (cache / sample_path(BUCKET, 1)).read_bytes() == before[sample_path(BUCKET, 1)]
    out, _ = run_job("resume", cache, status=3)
    assert "1 to encode" in out
    out, _ = run_verify(cache)
    assert "0 problems" in out
    assert samples_of(cache) == clips
    assert read_manifest(Storage(str(cache))).at(1) == manifest


@pytest.mark.slow
def test_metadata_is_written_again_and_what_was_planned_is_restored(run: Path) -> None:
    cache, before = run / "cache", read_files(run / "cache")
    folder = read_manifest(Storage(str(cache))).generations[0].folder
    planned = (plan_path(folder, BUCKET), rejected_path(folder), sources_path(folder))
    metadata = f"latents/{BUCKET}/zarr.json"
    for path in (*planned, metadata):
        flip(cache / path, 60)
    (cache / "zarr.json").unlink()
    out, _ = run_verify(cache, "--repair", status=3)
    for path in (*planned, metadata, "zarr.json"):
        assert f"problem  {path}: " in out
    for path in planned:
        (cache / path).write_bytes(before[path])
    assert "latentcache precompute CONFIG.yaml" in run_verify(cache, status=3)[0]
    run_job("precompute", run / "config.yaml", status=3)
    run_verify(cache)
    now = read_files(cache)
    assert {path: now[path] for path in (metadata, "zarr.json")} == {
        path: before[path] for path in (metadata, "zarr.json")
    }


@pytest.mark.slow
def test_a_damaged_cache_json_is_not_repaired(run: Path) -> None:
    file = run / "cache" / "cache.json"
    before = file.read_bytes()
    flip(file, 200)
    try:
        files = read_files(run / "cache")
        out, err = run_verify(run / "cache", "--repair", status=2)
        assert "problem  cache.json: " in out
        assert "cannot be repaired while its cache.json is damaged" in err
        assert read_files(run / "cache") == files
    finally:
        file.write_bytes(before)


# Clips encoded again.


@pytest.mark.slow
def test_sampled_clips_are_encoded_again(run: Path, tmp_path: Path) -> None:
    out, _ = run_verify(run / "cache", "--sample", 5, "--seed", 3)
    assert "5 of 5 clips encoded again: 5 equal bit for bit" in out
    away = (run / "corpus/v0.mp4").rename(tmp_path / "away.mp4")
    try:
        out, _ = run_verify(run / "cache", "--sample", 100)
    finally:
        away.rename(run / "corpus/v0.mp4")
    assert "5 of 7 clips encoded again: 5 equal" in out
    assert "v0.mp4#0: not encoded again: " in out


@pytest.mark.slow
def test_latents_of_another_model_are_found(run: Path, tmp_path: Path) -> None:
    prepared = reopen_cache(str(run / "cache"), {})
    before = read_files(run / "cache")
    layout = prepared.manifest.layouts()[BUCKET]
    shard_file(prepared, ShardId(BUCKET, 0)).unlink()
    prepared.storage.delete(sample_path(BUCKET, 0))
    commit_rows(
        prepared, ShardId(BUCKET, 0), [np.ones(layout.shape, numpy_dtype(layout.dtype))] * 3
    )
    publish(prepared.storage, build_index(prepared.storage, prepared.manifest))
    try:
        out, _ = run_verify(run / "cache", "--sample", 7, status=3)
        wrong = len(latentcache.open_cache(str(run / "cache")).rows(BUCKET, 0))
        assert wrong
        assert f"{wrong} problems" in out
        assert f"problem  latents/{BUCKET}: clip " in out
    finally:
        for path, data in before.items():
            prepared.storage.write(path, data)


# Through the wire.


@pytest.mark.parametrize("name", ["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def test_on_s3(tmp_path: Path, s3: S3, name: str) -> None:
    url = f"{s3.url}/cache"
    prepared = plan_cache(tmp_path, url, format=name, storage_options=s3.options)
    fill_cache(prepared)
    options = [f"cache.storage_options.{key}={value}" for key, value in s3.options.items()]
    out, _ = run_verify(url, *options)
    assert "0 problems" in out
    path = next(n for n in s3.filesystem.find(url) if f"latents/{BUCKET}/" in n and "json" not in n)
    data = bytearray(s3.filesystem.cat_file(path))
    data[50] ^= 1
    s3.filesystem.pipe_file(path, bytes(data))
    out, err = run_verify(url, "--repair", *options, status=3)
    assert "repaired 1 clips are planned again" in out
    assert SECRET not in out + err
    assert "1 of 5 shards are still to be encoded" in run_verify(url, *options)[0]
