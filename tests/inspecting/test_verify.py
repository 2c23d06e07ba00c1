"""Verify: whatever is changed in a cache is found and named, and what can be repaired is repaired."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import jobs.verify
import latentcache
from latentcache.core.dtypes import numpy_dtype
from latentcache.core.records import ClipResult, ShardId
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.commit import commit_failed_shard, commit_shard
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import (
    INDEX,
    generation_path,
    plan_path,
    rejected_path,
    sample_path,
    sources_path,
)
from latentcache.format.schemas import plan_facts, shard_facts
from latentcache.format.shards import get_format
from latentcache.format.snapshot import build_index, publish, read_index, to_index
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.inspecting.shard_check import check_shard
from latentcache.inspecting.verify import Findings, verify, write_derived
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache, reopen_cache
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, read_files, run_job, samples_of
from tests.tools.planned import fill_cache, make_cache, plan_cache
from tests.tools.s3 import S3, SECRET, s3_fixture, s3_server_fixture  # noqa: F401 fixtures
from tests.tools.synthetic import facts_of

pytestmark = pytest.mark.usefixtures("kept_pools")

BUCKET = "5x64x96"
LONG = pytest.mark.long
VARIANTS = [
    ("zarr", "zstd"),
    pytest.param("parquet", "none", marks=LONG),
    pytest.param("zarr", "none", marks=LONG),
    pytest.param("parquet", "zstd", marks=LONG),
]


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    return make_cache(tmp_path)


def paths(findings: Findings) -> set[str]:
    return {problem.path for problem in findings.problems}


def plan_of(prepared: PlannedCache) -> str:
    return plan_path(prepared.manifest.generations[0].folder, BUCKET)


def only_problem(storage: Storage, path: str) -> str:
    findings = verify(storage)
    assert paths(findings) == {path}, findings.problems
    return findings.problems[0].what


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def rewrite(prepared: PlannedCache, path: str, column: str, value: Any, row: int = 0) -> None:
    """Change one value of a table, and seal it again: its own CRC32C fits."""
    table = from_parquet(prepared.storage.read(path))
    values = table[column].to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    changed = table.set_column(
        index, table.schema.field(column), pa.array(values, table[column].type)
    )
    prepared.storage.write(path, to_parquet(changed, facts_of(table)))


def run_verify(*args: object, status: int = 0) -> tuple[str, str]:
    """Run the job in this process; returns what it printed to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["latentcache verify", *map(str, args)])
        assert jobs.verify.main() == status, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


# A flipped byte.


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec"), VARIANTS)
def test_a_flipped_byte_is_found_in_every_object(name: str, codec: str, tmp_path: Path) -> None:
    prepared = make_cache(tmp_path, format=name, compression={"codec": codec})
    assert not verify(prepared.storage).problems
    rng = np.random.default_rng(0)
    for path, data in read_files(tmp_path / "cache").items():
        for offset in {len(data) - 1, *rng.integers(0, len(data), 2).tolist()}:
            mask = int(rng.integers(1, 256))
            flip(tmp_path / "cache" / path, offset, mask)
            assert path in paths(verify(prepared.storage)), (path, offset, mask)
            (tmp_path / "cache" / path).write_bytes(data)


@pytest.mark.slow
def test_a_flipped_byte_anywhere_breaks_the_seal(cache: PlannedCache, tmp_path: Path) -> None:
    sealed = {
        path: data for path, data in read_files(tmp_path / "cache").items() if "/c/" not in path
    }
    assert {path.split("/")[0] for path in sealed} == {
        *("cache.json", "generations", "plan", "samples", "index.parquet", "latents", "zarr.json")
    }
    for data in sealed.values():
        for offset in range(len(data)):
            changed = bytearray(data)
            changed[offset] ^= 1 << offset % 8
            with pytest.raises(ValueError, match="CRC32C"):
                checksum.check(bytes(changed))


@pytest.mark.long
@pytest.mark.parametrize(("name", "codec"), VARIANTS)
def test_a_flipped_byte_anywhere_in_a_shard_object_is_found(
    name: str, codec: str, tmp_path: Path
) -> None:
    prepared = make_cache(tmp_path, format=name, compression={"codec": codec})
    layout, manifest = prepared.manifest.layouts()[BUCKET], prepared.manifest
    for path, data in shard_objects(tmp_path / "cache"):
        shard = int(path.name.split(".")[0] if name == "parquet" else path.parts[-5])
        for offset in range(len(data)):
            flip(path, offset, 1 << offset % 8)
            check = check_shard(prepared.storage, manifest, layout, ShardId(BUCKET, shard), None)
            assert check.problems, (path, offset)
            path.write_bytes(data)


def shard_objects(cache: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted((cache / "latents" / BUCKET).rglob("*")):
        if path.is_file() and path.suffix != ".json":
            yield path, path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr", pytest.param("parquet", marks=LONG)])
def test_what_is_gone_short_or_long_is_found(name: str, tmp_path: Path) -> None:
    prepared = make_cache(tmp_path, format=name)
    for path, data in read_files(tmp_path / "cache").items():
        file = tmp_path / "cache" / path
        for changed in (data[:-1], data + b"\0", b""):
            file.write_bytes(changed)
            assert path in paths(verify(prepared.storage)), (path, len(changed))
        if path not in ("cache.json", INDEX, generation_path(1)):
            file.unlink()
            expected = {path} if not path.startswith("samples/") else {INDEX}
            assert paths(verify(prepared.storage)) == expected
        file.write_bytes(data)


# What fits its CRC32C and is wrong.


@pytest.mark.slow
def test_a_sound_cache_has_no_problems(cache: PlannedCache) -> None:
    seen: list[int] = []
    findings = verify(cache.storage, seen.append, lambda: seen.append(-1))
    assert (findings.problems, findings.notes, findings.num_clips) == ([], [], 8)
    assert seen == [4, -1, -1, -1, -1]


@pytest.mark.slow
def test_every_object_of_a_shard_is_read_once(
    cache: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    read_ranges = Storage.read_ranges

    def counting(storage: Storage, path: str, *args: Any) -> list[bytes]:
        reads[path] += 1
        return read_ranges(storage, path, *args)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    assert not verify(cache.storage).problems
    shards = cache.planned_shards()
    assert [reads[sample_path(*shard)] for shard in shards] == [1] * len(shards)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "value"), [("caption", "another"), ("score", 0.5), ("start", 1), ("row", 2)]
)
def test_a_sample_table_that_is_not_the_plans_is_found(
    cache: PlannedCache, column: str, value: Any
) -> None:
    path = sample_path(BUCKET, 1)
    rewrite(cache, path, column, value)
    assert f"its column {column} is not the plan's" in only_problem(cache.storage, path)


@pytest.mark.slow
def test_a_sample_table_of_another_shard_or_recipe_is_found(cache: PlannedCache) -> None:
    first, second = sample_path(BUCKET, 0), sample_path(BUCKET, 1)
    original = cache.storage.read(second)
    cache.storage.write(second, cache.storage.read(first))
    assert "its rows are of another shard" in only_problem(cache.storage, second)
    cache.storage.write(second, to_parquet(from_parquet(original), shard_facts("f" * 64, b"")))
    assert "written with another recipe (ffffffffffff)" in only_problem(cache.storage, second)
    opened = latentcache.open_cache(cache.storage.url)
    with pytest.raises(CorruptionError, match=r"another recipe \(ffffffffffff\).*verify"):
        opened.table(["key"])
    with pytest.raises(CorruptionError, match=r"another recipe \(ffffffffffff\).*verify"):
        opened.rows(BUCKET, 1)
    assert len(opened.rows(BUCKET, 0))


@pytest.mark.slow
def test_a_plan_that_is_none_or_of_another_recipe_is_found(cache: PlannedCache) -> None:
    path = plan_of(cache)
    whole = cache.storage.read(path)
    generation, text = generation_path(1), "its tables are not those that it was written with"
    cache.storage.write(path, cache.storage.read(sample_path(BUCKET, 0)))
    findings = verify(cache.storage)
    assert generation in paths(findings)
    cache.storage.write(path, to_parquet(from_parquet(whole), plan_facts("f" * 64)))
    assert text in only_problem(cache.storage, generation)


@pytest.mark.slow
def test_a_plan_of_another_cache_is_found(cache: PlannedCache) -> None:
    rewrite(cache, plan_of(cache), "identity", "another")
    text = "its tables are not those that it was written with (their SHA-256 differs)"
    assert text in only_problem(cache.storage, generation_path(1))


@pytest.mark.slow
def test_a_recipe_that_was_changed_and_sealed_is_found(cache: PlannedCache) -> None:
    data = json.loads(cache.storage.read("cache.json"))
    data["recipe"]["stored"] = "moments"
    cache.storage.write("cache.json", checksum.seal_json(data))
    assert "fingerprint is not that of its recipe" in only_problem(cache.storage, "cache.json")


@pytest.mark.slow
def test_values_that_no_encoder_gives_are_found(tmp_path: Path) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    manifest = prepared.manifest
    layout = manifest.layouts()[BUCKET]
    rows: list[Any] = [np.zeros(layout.shape, numpy_dtype(layout.dtype)) for _ in range(3)]
    rows[1][0, 0, 0, 0] = np.inf
    commit(prepared, 0, rows)
    fill_cache(prepared)
    findings = verify(prepared.storage)
    assert [p.what for p in findings.problems] == ["clip 'v1#0', row 1: 1 values are not finite"]


def commit(prepared: PlannedCache, shard: int, rows: list[Any]) -> None:
    manifest = prepared.manifest
    task = prepared.plan.shard(ShardId(BUCKET, shard))
    commit_shard(
        prepared.storage,
        get_format(manifest.format),
        manifest.layouts()[BUCKET],
        task,
        rows,
        [ClipResult()] * len(rows),
        manifest.fingerprint,
    )


@pytest.mark.slow
def test_a_snapshot_that_is_not_the_sample_tables_is_found(cache: PlannedCache) -> None:
    rows = read_index(cache.storage).to_pylist()
    rows[2]["num_ok"] -= 1
    publish(cache.storage, to_index(rows, cache.manifest))
    assert (
        f"1 shards whose counts differ from their sample tables, such as {BUCKET}/1"
        in only_problem(cache.storage, INDEX)
    )


def test_shards_that_are_missing_failed_or_unpublished_are_no_problem(tmp_path: Path) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    storage, manifest = prepared.storage, prepared.manifest
    shard, layout = prepared.plan.shard(ShardId(BUCKET, 2)), manifest.layouts()[BUCKET]
    shard_format = get_format(manifest.format)
    commit_failed_shard(storage, shard_format, layout, shard, "died", manifest.fingerprint)
    fill_cache(prepared, published=False)
    storage.delete(sample_path(BUCKET, 0))
    findings = verify(storage)
    assert findings.problems == []
    assert "no snapshot yet" in findings.notes[0]
    assert findings.notes[1:] == ["1 of 4 shards are still to be encoded"]


def test_a_cache_of_a_newer_version_is_not_damaged(cache: PlannedCache) -> None:
    data = json.loads(cache.storage.read("cache.json"))
    cache.storage.write("cache.json", checksum.seal_json({**data, "format_version": 2}))
    with pytest.raises(CacheError, match="Install a newer latentcache"):
        verify(cache.storage)


# Repair.


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


def shard_file(prepared: PlannedCache, shard: ShardId) -> Path:
    layout = prepared.manifest.layouts()[shard.bucket]
    path = get_format(prepared.manifest.format).path(layout, shard.number)
    return Path(prepared.storage.url) / path


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
    flip(next(shard_objects(cache))[0], 7)
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
    commit(prepared, 0, [np.ones(layout.shape, numpy_dtype(layout.dtype))] * 3)
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
