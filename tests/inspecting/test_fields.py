"""Fields are checked, repaired, counted and kept by the jobs that look at caches."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.format import checksum
from latentcache.format.fields.manifest import read_field
from latentcache.format.fields.snapshot import committed_parts, parts_of, read_field_index
from latentcache.format.manifest import read_manifest
from latentcache.inspecting import field_check
from latentcache.inspecting.report.collect import Report
from latentcache.inspecting.report.facts import read_facts
from latentcache.inspecting.report.page import render
from latentcache.inspecting.verify import verify
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files, run_inline
from tests.tools.copied import reopened
from tests.tools.fields import add, cache_of, grow, padded, relabel, text_field
from tests.tools.other_arrow import another_arrow
from tests.tools.planned import fill_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

CAPTIONS = ["one", "two", "one", "NAN", "five", "six"]


def with_field(folder: Path, shard_format: str = "zarr") -> PlannedCache:
    """A cache with a field of two arrays and two versions, one clip of which failed."""
    cache = cache_of(folder, CAPTIONS, format=shard_format)
    add(cache, status=3, umt5=text_field(pooled=True, length=64))
    cache = relabel(cache, {"v0#0": "changed", "v5#0": "changed"})
    add(cache, "--update", status=3, umt5=text_field(pooled=True, length=64))
    return cache


def field_files(cache: PlannedCache) -> list[str]:
    return [n for n in read_files(Path(cache.storage.url)) if n.startswith("fields/")]


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_a_sound_field_is_sound(tmp_path: Path, shard_format: str) -> None:
    cache = with_field(tmp_path, shard_format)
    status, printed = run_inline("verify", cache.storage.url)
    assert (status, "0 problems" in printed) == (0, True), printed
    assert "field    umt5" in printed


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
@pytest.mark.parametrize("bucket", [(5, 64, 96), (9, 64, 96)])
def test_clips_that_a_field_has_still_to_encode_are_noted(
    tmp_path: Path, shard_format: str, bucket: tuple[int, int, int]
) -> None:
    """Its arrays grow when it is made for them, so until then they are shorter than the latents'."""
    cache = cache_of(tmp_path, ["one", "two", "three", "four"], shard_clips=3, format=shard_format)
    add(cache, umt5=text_field(calm=True))
    cache = grow(cache, ["new"], clip=bucket)
    status, printed = run_inline("verify", cache.storage.url)
    assert (status, "0 problems" in printed) == (0, True), printed
    assert "shards of the field umt5 are still to be encoded" in printed
    add(cache, "--update", umt5=text_field(calm=True))
    status, printed = run_inline("verify", cache.storage.url)
    assert (status, "still to be encoded" in printed) == (0, False), printed


@pytest.mark.slow
def test_an_array_that_is_shorter_than_what_is_encoded_is_found(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["one", "two", "three", "four"], shard_clips=3)
    add(cache, umt5=text_field(calm=True))
    (path,) = Path(cache.storage.url).glob("fields/umt5/**/5x64x96/zarr.json")
    whole = path.read_bytes()
    crc = json.loads(whole)["attributes"][checksum.KEY].encode()
    shorter = re.sub(rb'("shape":\s*\[\s*)4', rb"\g<1>3", whole).replace(
        crc, checksum.EMPTY.encode()
    )
    path.write_bytes(checksum.seal(shorter))
    status, printed = run_inline("verify", cache.storage.url)
    assert status == 3
    assert "it describes another array than field.json" in printed


@pytest.mark.slow
def test_a_flipped_byte_of_a_field_is_found(tmp_path: Path) -> None:
    cache = with_field(tmp_path)
    folder, missed = Path(cache.storage.url), []
    for name in field_files(cache):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(flipped(data))
        status, printed = run_inline("verify", folder)
        if status != 3 or name.split("/samples/")[0] not in printed:
            missed.append(name)
        path.write_bytes(data)
    assert not missed


@pytest.mark.slow
def test_clips_that_another_run_adds_meanwhile_are_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither are those that it adds while the latents are checked, nor while a field's samples are."""
    cache = with_field(tmp_path)

    def add_clips() -> None:
        grow(reopened(cache), CAPTIONS)
        add(cache, "--update", status=3, umt5=text_field(pooled=True, length=64))

    def and_then_read(*args: Any) -> Any:
        add_clips()
        return read_field_index(*args)

    monkeypatch.setattr(field_check, "read_field_index", and_then_read)
    findings = verify(cache.storage, on_start=lambda _: add_clips())
    assert findings.problems == []


def flipped(data: bytes) -> bytes:
    """The bytes with one bit changed in the middle of the first kB, where samples are."""
    at = min(len(data), 200) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_damaged_samples_are_encoded_again(tmp_path: Path, shard_format: str, lost: bool) -> None:
    cache = with_field(tmp_path, shard_format)
    folder = Path(cache.storage.url)
    for path in folder.glob("fields/umt5/0*/**/*"):
        if not path.is_file() or path.name == "zarr.json":
            continue
        if lost:
            path.unlink()
        else:
            path.write_bytes(flipped(path.read_bytes()))
    assert run_inline("verify", folder, "--repair")[0] == 3
    assert run_inline("resume", folder, "run.runner=local")[0] == 3  # for the text that fails
    status, printed = run_inline("verify", folder)
    assert status == 0, printed
    opened = latentcache.open_cache(str(folder))
    for n in range(len(opened)):
        if opened[n]["caption"] != "NAN":
            expected = padded(opened[n]["caption"], 64)
            np.testing.assert_array_equal(as_numpy(opened[n]["umt5"]), expected)


@pytest.mark.slow
def test_samples_that_are_planned_again_are_not_planned_twice(tmp_path: Path) -> None:
    cache = with_field(tmp_path)
    folder = Path(cache.storage.url)
    (damaged, *_) = folder.glob("fields/umt5/000001/5x64x96/c/*/*/*")
    damaged.write_bytes(flipped(damaged.read_bytes()))
    assert "planned again; " not in run_inline("verify", folder, "--repair")[1]
    status, printed = run_inline("verify", folder, "--repair")
    assert (status, "repaired 0 clips of the field umt5 are planned again; " in printed) == (
        3,
        True,
    )
    versions = sorted(path.name for path in folder.glob("fields/umt5/versions/*"))
    assert versions == ["000002.parquet", "000003.parquet"]
    assert run_inline("resume", folder, "run.runner=local")[0] == 3  # for the text that fails
    assert run_inline("verify", folder)[0] == 0
    # Damaged once more, in the newest version, it is planned once more.
    (damaged, *_) = folder.glob("fields/umt5/000003/5x64x96/c/*/*/*")
    damaged.write_bytes(flipped(damaged.read_bytes()))
    assert "planned again; " not in run_inline("verify", folder, "--repair")[1]
    assert (folder / "fields/umt5/versions/000004.parquet").exists()


@pytest.mark.slow
def test_a_lost_sample_table_is_written_again(tmp_path: Path) -> None:
    cache = with_field(tmp_path)
    folder = Path(cache.storage.url)
    before = read_files(folder)
    for path in folder.glob("fields/umt5/samples/*/*/*"):
        path.write_bytes(flipped(path.read_bytes()))
    assert run_inline("verify", folder)[0] == 3
    run_inline("verify", folder, "--repair")
    assert read_files(folder) == before


@pytest.mark.slow
def test_the_snapshot_says_the_size_of_a_table_that_was_written_again(tmp_path: Path) -> None:
    with another_arrow():
        folder = Path(with_field(tmp_path).storage.url)
    (table,) = folder.glob("fields/umt5/samples/000001/*/000000.parquet")
    size = table.stat().st_size
    table.write_bytes(flipped(table.read_bytes()))
    assert run_inline("verify", folder, "--repair")[0] == 3
    assert table.stat().st_size != size
    status, printed = run_inline("verify", folder)
    assert status == 0, printed


@pytest.mark.slow
def test_a_sample_table_and_one_of_its_samples_are_repaired_at_once(tmp_path: Path) -> None:
    folder = Path(with_field(tmp_path).storage.url)
    (table,) = folder.glob("fields/umt5/samples/000001/*/000000.parquet")
    damaged, *_ = folder.glob("fields/umt5/000001/5x64x96/c/0/*/*")
    for path in (table, damaged):
        path.write_bytes(flipped(path.read_bytes()))
    status, printed = run_inline("verify", folder, "--repair")
    assert (status, "repaired 1 clips of the field umt5 are planned again\n" in printed) == (
        3,
        True,
    )
    (folder / "fields/umt5/index.parquet").unlink()  # which is made of the sample tables again
    assert run_inline("resume", folder, "run.runner=local")[0] == 3  # for the text that fails
    assert run_inline("verify", folder)[0] == 0
    opened = latentcache.open_cache(str(folder))
    for sample in (opened[n] for n in range(len(opened)) if opened[n]["caption"] != "NAN"):
        np.testing.assert_array_equal(as_numpy(sample["umt5"]), padded(sample["caption"], 64))


@pytest.mark.slow
def test_cleaning_keeps_a_field_and_removes_what_a_dropped_one_left(tmp_path: Path) -> None:
    cache = with_field(tmp_path)
    folder = Path(cache.storage.url)
    old = time.time() - 1e5
    for path in folder.rglob("*"):
        os.utime(path, (old, old))
    assert "Nothing to remove" in run_inline("clean", folder)[1]
    before = read_files(folder)
    (folder / "fields/umt5/field.json").unlink()
    run_inline("clean", folder, "--yes")
    left = read_files(folder)
    assert left == {name: data for name, data in before.items() if not name.startswith("fields/")}


@contextmanager
def stopped_after(num: int) -> Iterator[None]:
    """Stop a job when it is about to delete another file than its first ones."""
    delete, done = Storage.delete, []

    def stopping(storage: Storage, path: str) -> None:
        if len(done) == num:
            raise KeyboardInterrupt
        done.append(path)
        delete(storage, path)

    with mock.patch.object(Storage, "delete", stopping):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_a_field_is_sound_and_its_snapshot_lists_what_is_there_after_cleaning(
    tmp_path: Path, shard_format: str
) -> None:
    cache = with_field(tmp_path, shard_format)
    rows = {shard: range(cache.manifest.num_rows(shard)) for shard in cache.planned_shards()[:1]}
    repair_cache(cache.storage, rows)
    cache = replace(cache, manifest=read_manifest(cache.storage))
    fill_cache(cache, seed=1)
    add(cache, status=3, umt5=text_field(pooled=True, length=64))
    clean = ("clean", cache.storage.url, "--yes", "--retired-days", "0")
    for num in (1, 2, 3):  # the next one goes on
        with stopped_after(num):
            assert run_inline(*clean)[0] == 130
        status, printed = run_inline("verify", cache.storage.url)
        assert (status, "0 problems" in printed) == (0, True), printed
    assert "Removed " in run_inline(*clean)[1]
    assert "Nothing to remove" in run_inline(*clean)[1]
    field = read_field(cache.storage, "umt5", cache.manifest)
    there = committed_parts(cache.storage, field, cache.manifest)
    assert parts_of(read_field_index(cache.storage, field)) == there
    assert {part.shard for part in there}.isdisjoint(rows)
    assert run_inline("verify", cache.storage.url)[0] == 0


@pytest.mark.slow
def test_status_counts_fields_by_themselves(tmp_path: Path) -> None:
    cache = with_field(tmp_path)
    status, printed = run_inline("status", cache.storage.url, "--json")
    found = json.loads(printed)
    num_ok = len(CAPTIONS) - 1  # one clip of the latents failed, another one of the field
    assert (status, found["clips_ok"], found["clips_failed"]) == (0, num_ok, 1)
    assert (found["fields"]["umt5"]["num_ok"], found["fields"]["umt5"]["num_failed"]) == (5, 1)
    counts = found["fields"]["umt5"]
    assert counts["num_shards"] == counts["num_committed"] == 4
    assert "field    umt5: 4 of 4 shards committed" in run_inline("status", cache.storage.url)[1]


@pytest.mark.slow
def test_the_report_has_a_table_of_fields(tmp_path: Path) -> None:
    cache = with_field(tmp_path)
    facts = read_facts(cache.storage, read_manifest(cache.storage))
    assert [(f.field.name, f.counts.num_ok, f.counts.num_failed) for f in facts.fields] == [
        ("umt5", 5, 1)
    ]
    report = Report(url="url", state="finished", manifest=read_manifest(cache.storage), facts=facts)
    assert "umt5.pooled [8] bfloat16" in render(report, "today")
