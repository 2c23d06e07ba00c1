"""Clean: exactly what no plan refers to is removed; what is foreign, new or reached by a link stays."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import jobs.clean
import latentcache
from latentcache.core.records import ShardId
from latentcache.errors import CorruptionError
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import INDEX, generation_path, sample_path
from latentcache.format.shards import get_format
from latentcache.inspecting import leftovers
from latentcache.inspecting.leftovers import YOUNG_S, find_leftovers, retired_shards
from latentcache.inspecting.verify import verify
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache
from latentcache.planning.retry import plan_repair
from latentcache.planning.step import to_generation
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files
from tests.tools.planned import fill_cache, make_cache, plan_cache
from tests.tools.s3 import S3, SECRET, s3_fixture, s3_server_fixture  # noqa: F401 fixtures

BUCKET = "5x64x96"

#: Of a plan that came second: its tables are there, and no generation names them.
SECOND = "000002-0123456789ab"
#: Left by a run that came second, or by nothing that a cache does.
UNPLANNED = {
    "zarr": ["latents/9x64x96/zarr.json", "latents/5x64x96/c/3/0/0/0/0", "latents/9x8x8/c/0/0/0"],
    "parquet": ["latents/9x64x96/000000.parquet", "latents/5x64x96/000003.parquet"],
}
ALWAYS_UNPLANNED = [
    f"plan/{SECOND}/9x64x96.parquet",
    f"plan/{SECOND}/sources.parquet",
    f"retired/{SECOND}.parquet",
    f"columns/{SECOND}/shards.parquet",
    f"columns/{SECOND}/5x64x96/000000.parquet",
    "samples/9x64x96/000000.parquet",
    "samples/5x64x96/000003.parquet",
]
FOREIGN = [
    "notes.txt",
    "plan/notes.parquet",
    "plan/5x64x96.parquet",
    f"plan/{SECOND}/5x64x96.parquet.bak",
    f"retired/{SECOND}/5x64x96.parquet",
    "generations/000002.json.bak",
    "samples/5x64x96/readme",
    "samples/5x64x96/0.parquet",
    "samples/rejected/000001.parquet",
    "latents/05x64x96/zarr.json",
    "latents/model.safetensors",
    "latents/5x64x96/c/0/0/0/0/0.bak",
    "mine/5x64x96/000000.parquet",
    f"mine/.plan.json.{uuid.uuid4().hex}.tmp",
    f".notes.txt.{uuid.uuid4().hex}.tmp",
    "samples/5x64x96/.000000.parquet.tmp",
    "x.tmp",
]


def temporary(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex}.tmp".lstrip("/")


def put(cache: Path, path: str, age_s: float = 0.0) -> str:
    file = cache / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 100)
    then = time.time() - age_s
    os.utime(file, (then, then))
    return path


def run_clean(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latentcache clean", *map(str, args)])
    return jobs.clean.main()


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_exactly_what_no_plan_refers_to_is_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    prepared, cache = make_cache(tmp_path, format=name), tmp_path / "cache"
    (cache / sample_path(BUCKET, 1)).unlink()  # its object is in flight, or lost
    kept = everything(cache)
    unplanned = (*UNPLANNED[name], *ALWAYS_UNPLANNED)
    written = ["cache.json", sample_path(BUCKET, 0), ALWAYS_UNPLANNED[0], "latents/zarr.json"]
    old = [put(cache, temporary(path), YOUNG_S + 60) for path in written]
    new = [put(cache, temporary(path), YOUNG_S - 60) for path in written]
    new += [
        put(cache, path.replace("9x", "17x"), YOUNG_S - 60) for path in unplanned if "9x" in path
    ]
    gone = {*old, *(put(cache, path, YOUNG_S + 60) for path in unplanned)}
    kept |= {*new, *(put(cache, path, YOUNG_S + 60) for path in FOREIGN)}

    assert run_clean(monkeypatch, cache) == 0
    listed = capsys.readouterr().out
    assert everything(cache) == kept | gone
    assert all(path in listed for path in (*gone, *new, *FOREIGN))
    assert f"{len(gone)} files, " in listed

    assert run_clean(monkeypatch, cache, "--yes") == 0
    assert f"Removed {len(gone)} files, " in capsys.readouterr().out
    assert everything(cache) == kept
    assert not [p for p in verify(prepared.storage).problems if p.path != INDEX]
    assert run_clean(monkeypatch, cache, "--yes") == 0
    assert "Nothing to remove." in capsys.readouterr().out


def test_links_are_listed_and_neither_followed_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache(tmp_path)
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    target = outside / put(outside, "9x64x96/000000.parquet")
    (cache / "samples/9x64x96").symlink_to(outside / "9x64x96")
    (cache / "samples/5x64x96/000009.parquet").symlink_to(target)
    (cache / "latents/7x64x96").symlink_to(cache)
    before = everything(cache)
    assert run_clean(monkeypatch, cache, "--yes") == 0
    out = capsys.readouterr().out
    assert "samples/9x64x96  (foreign; left)" in out
    assert "Nothing to remove." in out
    assert (everything(cache), target.exists()) == (before, True)


def test_what_is_no_cache_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (*ALWAYS_UNPLANNED, temporary("cache.json")):
        put(tmp_path, path, 2 * YOUNG_S)
    before = everything(tmp_path)
    assert run_clean(monkeypatch, tmp_path, "--yes") == 2
    assert "there is no cache here" in capsys.readouterr().err
    make_cache(tmp_path, "whole")
    damaged = (tmp_path / "whole/cache.json").read_bytes()[:-9]
    (tmp_path / "cache.json").write_bytes(damaged)
    shutil.rmtree(tmp_path / "whole")
    assert run_clean(monkeypatch, tmp_path, "--yes") == 2
    assert everything(tmp_path) >= before


def test_a_file_of_unknown_age_may_be_being_written(tmp_path: Path) -> None:
    prepared = make_cache(tmp_path)
    put(tmp_path / "cache", temporary("cache.json"), 2 * YOUNG_S)
    files = prepared.storage.files()
    ageless = [f.__class__(path=f.path, num_bytes=1, modified_s=None) for f in files]
    assert not find_leftovers(ageless, prepared.manifest, time.time()).removable
    assert len(find_leftovers(files, prepared.manifest, time.time()).temporary) == 1


# Shards all of whose rows were retired.


def retire(prepared: PlannedCache, *rows: tuple[int, list[int]]) -> PlannedCache:
    """Plan rows of a bucket's shards again, as the next generation, and commit the new shards."""
    repair_cache(prepared.storage, {ShardId(BUCKET, shard): numbers for shard, numbers in rows})
    now = replace(prepared, manifest=read_manifest(prepared.storage))
    fill_cache(now)
    return now


@pytest.mark.slow
def test_a_shard_is_retired_once_all_its_rows_are(tmp_path: Path) -> None:
    prepared = retire(make_cache(tmp_path), (0, [0, 1, 2]), (1, [0, 2]))
    last = retire(prepared, (1, [1]))
    storage, manifest = last.storage, last.manifest
    written_s = {file.path: file.modified_s for file in storage.files()}
    first, second, third = (
        max(generation.created_s, written_s[generation_path(generation.number)] or 0.0)
        for generation in manifest.generations
    )
    at = {first: [], second: [0], (second + third) / 2: [0], third: [0, 1]}
    for before_s, shards in at.items():
        expected = [ShardId(BUCKET, number) for number in shards]
        assert retired_shards(storage, storage.files(), manifest, before_s) == expected
    assert retired_shards(storage, storage.files(), manifest, first - 1) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_only_the_files_of_shards_retired_long_ago_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    prepared, cache = make_cache(tmp_path, format=name), tmp_path / "cache"
    layout = prepared.manifest.layouts()[BUCKET]
    retire(prepared, (0, [0, 1, 2]), (1, [0]))
    opened = latentcache.open_cache(str(cache))
    before, kept = opened.table(), everything(cache)
    assert opened.manifest.num_clips == prepared.manifest.num_clips
    assert run_clean(monkeypatch, cache, "--yes") == 0
    assert everything(cache) == kept
    gone = {sample_path(BUCKET, 0), get_format(name).path(layout, 0)}
    capsys.readouterr()
    assert run_clean(monkeypatch, cache, "--yes", "--retired-days", 0) == 0
    assert "Removed 2 files, " in capsys.readouterr().out
    assert everything(cache) == kept - gone
    findings = verify(prepared.storage)
    assert (findings.problems, findings.notes) == ([], [])
    again = latentcache.open_cache(str(cache))
    assert repr(again.table().to_pylist()) == repr(before.to_pylist())  # NaN differs from itself
    assert [again[n]["key"] for n in range(len(again))] == [
        opened[n]["key"] for n in range(len(opened))
    ]
    assert not replace(prepared, manifest=again.manifest).missing_shards()


def test_a_shard_that_the_published_snapshot_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that retired its rows was killed before it could publish, and readers still open it."""
    prepared, cache = make_cache(tmp_path), tmp_path / "cache"
    published = (cache / INDEX).read_bytes()
    retire(prepared, (0, [0, 1, 2]))
    newest = (cache / INDEX).read_bytes()
    (cache / INDEX).write_bytes(published)
    before = everything(cache)
    assert run_clean(monkeypatch, cache, "--yes", "--retired-days", 0) == 0
    out = capsys.readouterr().out
    assert "1 retired shards stay: the published snapshot still has them" in out
    assert f"latentcache resume {cache}" in out
    assert everything(cache) == before
    opened = latentcache.open_cache(str(cache))
    assert len([opened[n] for n in range(len(opened))]) == len(opened)
    (cache / INDEX).write_bytes(newest)
    assert run_clean(monkeypatch, cache, "--yes", "--retired-days", 0) == 0
    assert "Removed 2 files, " in capsys.readouterr().out
    for place in (
        "latents",
        "samples",
    ):  # of a reader that has read the table, and of one that has not
        with pytest.raises(CorruptionError, match=rf"{place}/{BUCKET}/.* open the newest snapshot"):
            opened.table() if place == "samples" else [*map(opened.stored, range(len(opened)))]
    assert not verify(prepared.storage).problems
    (cache / INDEX).write_bytes(
        published
    )  # by a run that was halted before it could, and then killed
    (problem,) = verify(prepared.storage).problems
    assert (problem.path, "1 shards without a sample table" in problem.what) == (INDEX, True)


def test_rows_that_a_machine_without_the_time_retired_are_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("latentcache.planning.step.time.time", lambda: 0.0)
        last = retire(make_cache(tmp_path), (0, [0, 1, 2]))
    assert {generation.created_s for generation in last.manifest.generations} == {0.0}
    files, now_s = last.storage.files(), time.time()
    assert retired_shards(last.storage, files, last.manifest, now_s - 3600) == []
    assert retired_shards(last.storage, files, last.manifest, now_s) == [ShardId(BUCKET, 0)]


def test_tables_of_a_step_that_is_taken_meanwhile_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run that was halted for hours after it had written them."""
    prepared, cache = make_cache(tmp_path), tmp_path / "cache"
    rows = pa.table({"bucket": [BUCKET], "shard": [0], "row": [0]})
    step = plan_repair(prepared.storage, prepared.manifest, rows)
    generation, tables = to_generation(prepared.manifest, step)
    for path, data in tables.items():
        put(cache, path, 2 * YOUNG_S)
        (cache / path).write_bytes(data)
        os.utime(cache / path, (0, 0))

    def then_count(findings: object) -> None:
        del findings
        prepared.storage.create(generation_path(2), generation.to_bytes())

    monkeypatch.setattr(jobs.clean, "_print", then_count)
    assert run_clean(monkeypatch, cache, "--yes") == 0
    assert all((cache / path).exists() for path in tables)


def test_on_s3(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{s3.url}/cache"
    prepared = plan_cache(tmp_path, url, storage_options=s3.options)
    fill_cache(prepared)
    before = {path: s3.filesystem.cat_file(path) for path in s3.filesystem.find(url)}
    s3.put("cache/samples/9x64x96/000000.parquet", b"x")
    s3.put("cache/notes.txt", b"x")
    options = [f"cache.storage_options.{key}={value}" for key, value in s3.options.items()]
    assert run_clean(monkeypatch, url, "--yes", *options) == 0
    assert "Nothing to remove." in capsys.readouterr().out
    monkeypatch.setattr(leftovers, "YOUNG_S", -60.0)  # a store's objects cannot be made old
    assert run_clean(monkeypatch, url, "--yes", *options) == 0
    captured = capsys.readouterr()
    assert "Removed 1 files, 1 B." in captured.out
    assert SECRET not in captured.out + captured.err
    after = {path: s3.filesystem.cat_file(path) for path in s3.filesystem.find(url)}
    assert {path for path in after if path not in before} == {f"{url[5:]}/notes.txt"}
    assert {path: data for path, data in after.items() if path in before} == before


def test_files_are_found_with_their_sizes(tmp_path: Path) -> None:
    make_cache(tmp_path)
    files = {f.path: f.num_bytes for f in Storage(str(tmp_path / "cache")).files()}
    assert files == {p: len(data) for p, data in read_files(tmp_path / "cache").items()}
