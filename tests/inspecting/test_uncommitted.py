"""Objects of shards without a sample table: those of a killed run, and those that would stop one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import latentcache
from latentcache.core.records import ShardId
from latentcache.format.paths import sample_path
from latentcache.format.shards import get_format
from latentcache.format.snapshot import build_index, publish
from latentcache.inspecting import uncommitted
from latentcache.inspecting.uncommitted import uncommitted_shards
from latentcache.inspecting.verify import verify
from latentcache.planning.planned import PlannedCache
from tests.tools.copied import reopened
from tests.tools.damage import run_verify, shard_file
from tests.tools.planned import fill_cache, make_cache

SHARDS = [ShardId("5x64x96", number) for number in (0, 1)]
formats = pytest.mark.parametrize("name", ["zarr", "parquet"])


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path, name: str) -> PlannedCache:
    """A cache two of whose shards have no sample table."""
    cache = make_cache(tmp_path, format=name)
    for shard in SHARDS:
        cache.storage.delete(sample_path(*shard))
    publish(cache.storage, build_index(cache.storage, cache.manifest))
    return cache


@formats
def test_objects_that_a_run_takes_are_no_problem(cache: PlannedCache) -> None:
    assert uncommitted_shards(cache.storage, cache.manifest, ()) == SHARDS
    assert uncommitted_shards(cache.storage, cache.manifest, SHARDS[:1]) == SHARDS[1:]
    findings = verify(cache.storage)
    assert (findings.problems, findings.notes) == ([], ["2 of 4 shards are still to be encoded"])
    shard_file(cache, SHARDS[0]).unlink()
    assert not verify(cache.storage).problems


@formats
def test_objects_that_would_stop_a_run_are_found_and_their_clips_planned_again(
    cache: PlannedCache, name: str
) -> None:
    first, second = (shard_file(cache, shard) for shard in SHARDS)
    second.write_bytes(first.read_bytes())  # of other clips
    first.write_bytes(b"no shard" * 100)
    paths = [get_format(name).path(cache.manifest.layouts()["5x64x96"], n) for n in (0, 1)]
    problems = verify(cache.storage).problems
    assert [problem.path for problem in problems] == paths
    assert problems[0].what.startswith("it is no shard of this cache: ")
    assert problems[1].what.startswith("it is of other clips than was planned; its sample table is")
    out, _ = run_verify(cache.storage.url, "--repair", status=3)
    assert "repaired 6 clips are planned again" in out
    assert not verify(cache.storage).problems
    fill_cache(reopened(cache))
    assert not verify(cache.storage).problems
    assert len(latentcache.open_cache(cache.storage.url).table()) == 10


@formats
def test_shards_that_a_run_commits_meanwhile_are_not_read_again(
    cache: PlannedCache, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    whole = make_cache(tmp_path / "whole", format=name)
    tables = {path: whole.storage.read(path) for path in (sample_path(*s) for s in SHARDS)}
    read: list[int] = []
    monkeypatch.setattr(uncommitted, "read_object", lambda *args: read.append(args[-1]))

    def commit() -> None:
        for path, table in tables.items():
            cache.storage.write(path, table)

    verify(cache.storage, on_shard=commit)
    assert read == []


@formats
def test_objects_without_a_table_are_read_in_several_threads(
    cache: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, read = threading.Barrier(len(SHARDS)), uncommitted.read_object

    def together(*args: Any) -> bytes | None:
        both.wait(30)
        return read(*args)

    monkeypatch.setattr(uncommitted, "read_object", together)
    assert not verify(cache.storage).problems
