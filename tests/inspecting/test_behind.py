"""Fields that are behind their cache: of which clips they have no value, or one of former captions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import latentcache
from latentcache import LatentLoader
from latentcache.core.fields import FieldArray
from latentcache.core.records import ShardId
from latentcache.format import samples
from latentcache.format.fields.manifest import create_version, read_field
from latentcache.format.fields.paths import field_sample_path
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import sample_path
from latentcache.inspecting.report.collect import Report
from latentcache.inspecting.report.facts import read_facts
from latentcache.inspecting.report.page import render
from latentcache.inspecting.watch import Watch
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of, grow, relabel, text_field

pytestmark = pytest.mark.usefixtures("kept_pools")

CAPTIONS = ["one", "two", "three", "four", "five", "six"]
#: Of the six, the latents of v2#0 failed; and so did one of the four that `grow` adds.
CHANGED = {"v0#0": "other", "v2#0": "of a failed clip", "v4#0": "else"}
BUCKET = "5x64x96"


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    """A cache of three shards with a text field."""
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=2)
    add(cache, umt5=text_field())
    return cache


def behind(cache: PlannedCache, name: str = "umt5") -> tuple[int, int]:
    """Return how many ok clips have no value, and how many a former one; loaders leave out as many."""
    found = Watch(cache.storage).look(time.time()).behind[name]
    if name == "umt5":
        (left_out,) = LatentLoader(cache.storage.url, 1, fields=[name]).left_out
        former = sum(num for what, num in left_out.items() if "captions changed" in what)
        assert (left_out[name], former) == (found.num_missing, found.num_former)
    return found.num_missing, found.num_former


def test_ok_clips_without_a_value_or_with_a_former_one_are_counted(cache: PlannedCache) -> None:
    assert behind(cache) == (0, 0)
    cache = relabel(cache, CHANGED)
    assert behind(cache) == (0, 2)
    cache = grow(cache, ["seven", "eight", "nine", "ten"])
    assert behind(cache) == (3, 2)
    cache = relabel(cache, {"v1#0": "a", "v3#0": "b", "v5#0": "c"})  # the others are as at first
    assert behind(cache) == (3, 3)
    run_inline("resume", cache.storage.url, "--field", "umt5", "run.runner=local")
    assert behind(cache) == (0, 0)


def test_a_version_that_waits_and_one_without_those_before_it_are_counted(
    cache: PlannedCache,
) -> None:
    cache = relabel(cache, CHANGED)
    field = read_field(cache.storage, "umt5", cache.manifest)
    rows = {ShardId(BUCKET, 0): frozenset({0}), ShardId(BUCKET, 1): frozenset({0})}
    assert create_version(cache.storage, field, "update", 2, rows)
    assert behind(cache) == (0, 2)
    run_inline("resume", cache.storage.url, "--field", "umt5", "run.runner=local")
    assert behind(cache) == (0, 0)
    folder = Path(cache.storage.url)
    (folder / field_sample_path("umt5", 1, ShardId(BUCKET, 0))).unlink()
    (folder / "fields/umt5/index.parquet").unlink()
    found = Watch(cache.storage).look(time.time()).behind["umt5"]
    assert (found.num_missing, found.num_former) == (1, 0)  # v1#0; the second version has v0#0


def test_failed_values_count_only_if_a_run_is_to_make_them_unasked(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["one", "NAN", "three", "NAN"], shard_clips=2)
    add(cache, status=3, umt5=text_field())
    assert Watch(cache.storage).look(time.time()).behind["umt5"].num_missing == 0
    cache = relabel(cache, {"v1#0": "sound"})
    assert Watch(cache.storage).look(time.time()).behind["umt5"].num_missing == 1
    field = read_field(cache.storage, "umt5", cache.manifest)
    rows = {ShardId(BUCKET, 1): frozenset({1})}
    assert create_version(cache.storage, field, "retry", 2, rows)
    assert Watch(cache.storage).look(time.time()).behind["umt5"].num_missing == 2


def test_clips_of_a_copy_that_had_no_value_to_copy_are_counted(
    cache: PlannedCache, tmp_path: Path
) -> None:
    cache = grow(cache, ["seven"])
    copy = tmp_path / "copy"
    assert run_inline("copy", cache.storage.url, copy)[0] == 0
    (found,) = Watch(Storage(str(copy))).look(time.time()).behind.values()
    assert (found.num_missing, found.num_former) == (1, 0)


def test_jobs_say_what_is_behind_and_what_makes_it(cache: PlannedCache) -> None:
    url = cache.storage.url
    for job in ("status", "verify"):
        assert "behind " not in run_inline(job, url)[1]
    cache = relabel(cache, CHANGED)
    said = (
        "umt5: 2 ok clips have values of former captions, so loaders leave them out. If no run is making "
        f"them:  latentcache resume {url} --field umt5\n"
    )
    status, printed = run_inline("status", url)
    assert (status, f"\nbehind   {said}" in printed) == (0, True), printed
    found = json.loads(run_inline("status", url, "--json")[1])
    assert "behind" not in found
    assert {"num_former": 2, "num_missing": 0, "num_ok": 6}.items() <= found["fields"][
        "umt5"
    ].items()
    status, printed = run_inline("verify", url)
    assert (status, f"note     the field {said}" in printed) == (0, True), printed
    cache = grow(cache, ["seven"])
    grown = "umt5: 2 ok clips have values of former captions and 1 ok clip has no value, so loaders"
    assert f"note     the field {grown}" in run_inline("verify", url)[1]
    facts = read_facts(cache.storage, read_manifest(cache.storage))
    report = Report(url=url, state="finished", manifest=read_manifest(cache.storage), facts=facts)
    assert grown in render(report, "today")


def test_fields_of_other_programs_are_made_by_these(cache: PlannedCache) -> None:
    url = cache.storage.url
    array = {"given": FieldArray(shape=(1,), dtype="float32")}
    latentcache.write_field(
        url, "given", lambda _: {"given": torch.zeros(1)}, arrays=array, recipe={}
    )
    cache = grow(relabel(cache, CHANGED), ["seven"])
    assert behind(cache, "given") == (1, 0)
    printed = run_inline("status", url)[1]
    assert (
        "behind   given: 1 ok clip has no value, so loaders leave them out. They come from a "
        in printed
    )
    assert "run it again, and latentcache.write_field goes on\n" in printed


def test_a_look_reads_only_shards_that_changed_and_each_once(
    cache: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = set(), samples.read_table

    def noted(storage: Any, path: str, *columns: Any) -> pa.Table:
        read.add(path)
        return whole(storage, path, *columns)

    monkeypatch.setattr(samples, "read_table", noted)
    watch = Watch(cache.storage)
    watch.look(time.time())
    assert not read
    cache = relabel(cache, {"v0#0": "other"})
    assert watch.look(time.time()).behind["umt5"].num_former == 1
    assert read == {sample_path(BUCKET, 0)}
    read.clear()
    assert watch.look(time.time()).behind["umt5"].num_former == 1
    assert not read


def test_a_damaged_table_ends_no_status(cache: PlannedCache) -> None:
    cache = relabel(cache, CHANGED)
    path = Path(cache.storage.url) / sample_path(BUCKET, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, printed = run_inline("status", cache.storage.url)
    assert (status, "1 ok clip has a value of former captions" in printed) == (0, True), printed
