"""Verify: whatever is changed in a cache is found and named, and what can be repaired is repaired."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import latentcache
from latentcache.core.dtypes import numpy_dtype
from latentcache.core.records import ShardId
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.commit import commit_failed_shard
from latentcache.format.paths import (
    INDEX,
    generation_path,
    plan_path,
    sample_path,
)
from latentcache.format.schemas import plan_facts, shard_facts
from latentcache.format.shards import get_format
from latentcache.format.snapshot import current_index, publish, read_index, shard_of, to_index
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.inspecting.shard_check import check_shard
from latentcache.inspecting.verify import Findings, verify
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files, run_inline
from tests.tools.copied import make_fragmented, reopened
from tests.tools.damage import flip, shard_objects
from tests.tools.planned import commit_rows, fill_cache, make_cache, plan_cache
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
    for path, data in shard_objects(tmp_path / "cache", BUCKET):
        shard = int(path.name.split(".")[0] if name == "parquet" else path.parts[-5])
        for offset in range(len(data)):
            flip(path, offset, 1 << offset % 8)
            check = check_shard(prepared.storage, manifest, layout, ShardId(BUCKET, shard), None)
            assert check.problems, (path, offset)
            path.write_bytes(data)


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
    rewrite(cache, plan_of(cache), "url", "another")
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
    commit_rows(prepared, ShardId(BUCKET, 0), rows)
    fill_cache(prepared)
    findings = verify(prepared.storage)
    assert [p.what for p in findings.problems] == ["clip 'v1#0', row 1: 1 values are not finite"]


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


def last_shard(cache: PlannedCache) -> ShardId:
    return shard_of(read_index(cache.storage).to_pylist()[-1])


def commit_a_shard(cache: PlannedCache) -> None:
    fill_cache(reopened(cache))


def retire_a_clip(cache: PlannedCache) -> None:
    assert repair_cache(cache.storage, {last_shard(cache): [0]}) == 1
    fill_cache(reopened(cache))


def compact(cache: PlannedCache) -> None:
    assert run_inline("compact", cache.storage.url, "--below", 1)[0] == 0


@pytest.mark.parametrize("happens", [commit_a_shard, retire_a_clip, compact])
@pytest.mark.parametrize("num_before", [0, 1])
def test_what_another_run_does_meanwhile_is_no_problem(
    tmp_path: Path, happens: Callable[[PlannedCache], None], num_before: int
) -> None:
    """num_before: how often the cache was compacted before."""
    cache = make_fragmented(tmp_path)
    for _ in range(num_before):
        compact(cache)
        shards = map(shard_of, read_index(cache.storage).to_pylist())
        assert repair_cache(cache.storage, {s: [0] for s in shards if s.bucket == BUCKET}) >= 3
        fill_cache(reopened(cache))
    if happens is commit_a_shard:
        cache.storage.delete(sample_path(*last_shard(cache)))
        publish(cache.storage, current_index(cache.storage, reopened(cache).manifest))
    before = read_index(cache.storage)
    findings = verify(cache.storage, on_start=lambda _: happens(cache))
    assert not read_index(cache.storage).equals(before, check_metadata=True)
    assert findings.problems == []


def test_a_cache_of_a_newer_version_is_not_damaged(cache: PlannedCache) -> None:
    data = json.loads(cache.storage.read("cache.json"))
    cache.storage.write("cache.json", checksum.seal_json({**data, "format_version": 2}))
    with pytest.raises(CacheError, match="Install a newer latentcache"):
        verify(cache.storage)
