"""Merging, copying and splitting caches: what the new cache holds, knows, and says of where it is from."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from jobs.copy_cache import read_keys
from latentcache.config.files import load_config
from latentcache.copying.parents import Parents, is_parent
from latentcache.copying.stored_rows import OpenCache
from latentcache.core.records import ShardId
from latentcache.errors import CacheError
from latentcache.format.manifest import read_manifest
from latentcache.format.shards import get_format
from latentcache.inspecting.verify import verify
from latentcache.planning.create import repair_cache
from latentcache.planning.known import KnownCache
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.storage.folder import Storage
from tests.tools import planned as tool
from tests.tools.caches import bits_of, read_files
from tests.tools.copied import (
    VIDEOS,
    clips_of,
    failed_of,
    make_fragmented,
    make_with,
    open_again,
    opened,
    relabel,
    reopened,
    run,
)
from tests.tools.planned import fill_cache, make_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

FORMATS = ("zarr", "parquet")


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_copy_is_a_cache_of_the_same_bytes_and_facts(
    shard_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_fragmented(tmp_path, format=shard_format)
    before, clips = read_files(tmp_path / "cache"), clips_of(open_again(cache.storage))
    member = type(get_format(shard_format))
    for name in (
        ("encode_shard", "decode", "read") if shard_format == "zarr" else ("read", "decode")
    ):
        monkeypatch.setattr(member, name, None)  # nothing is compressed or decompressed
    printed = run("copy", tmp_path / "cache", tmp_path / "copy")
    monkeypatch.undo()
    assert "8 clips ok, 1 failed" in printed
    assert clips_of(opened(tmp_path / "copy")) == clips
    assert failed_of(opened(tmp_path / "copy")) == failed_of(open_again(cache.storage))
    assert read_files(tmp_path / "cache") == before
    findings = verify(Storage(str(tmp_path / "copy")))
    assert (findings.problems, findings.notes) == ([], [])
    assert read_manifest(Storage(str(tmp_path / "copy"))).num_clips == cache.manifest.num_clips


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_copy_in_the_other_format_has_the_same_bits(shard_format: str, tmp_path: Path) -> None:
    make_fragmented(tmp_path, format=shard_format)
    other = next(name for name in FORMATS if name != shard_format)
    run("copy", tmp_path / "cache", tmp_path / "copy", "--format", other)
    assert opened(tmp_path / "copy").manifest.format == other
    assert not verify(Storage(str(tmp_path / "copy"))).problems
    assert samples(tmp_path / "copy") == samples(tmp_path / "cache")
    run("copy", tmp_path / "copy", tmp_path / "back", "--format", shard_format)
    assert clips_of(opened(tmp_path / "back")) == clips_of(opened(tmp_path / "cache"))


def samples(path: Path) -> dict[str, bytes]:
    """The bits of each clip's latents."""
    return bits_of(opened(path))


@pytest.mark.slow
def test_zarr_python_reads_a_copy(tmp_path: Path) -> None:
    make_fragmented(tmp_path)
    run("copy", tmp_path / "cache", tmp_path / "copy", "--where", "bucket = '5x64x96'")
    array = zarr.open_group(tmp_path / "copy", mode="r")[f"latents/{VIDEOS}"]
    found = [np.asarray(array[row]).tobytes() for row in range(array.shape[0])]
    assert found == [*samples(tmp_path / "copy").values()]


@pytest.mark.slow
def test_two_copies_split_a_cache_and_a_merge_joins_them(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)
    clips = clips_of(open_again(cache.storage))
    keys = tmp_path / "keys.txt"
    keys.write_text("v1#0\r\nv8#0\n\nv3#0\n")
    chosen = {"v1#0", "v8#0", "v3#0"}
    run("copy", tmp_path / "cache", tmp_path / "val", "--keys", keys)
    where = "key not in ('v1#0', 'v8#0', 'v3#0')"
    run("copy", tmp_path / "cache", tmp_path / "train", "--where", where)
    val, train = clips_of(opened(tmp_path / "val")), clips_of(opened(tmp_path / "train"))
    assert (val.keys(), train.keys()) == (chosen, clips.keys() - chosen)
    assert failed_of(opened(tmp_path / "train")) == set(), "only ok clips are selected"
    run("merge", tmp_path / "train", tmp_path / "val", "-o", tmp_path / "all")
    assert clips_of(opened(tmp_path / "all")) == clips
    assert not verify(Storage(str(tmp_path / "all"))).problems


@pytest.mark.slow
def test_a_condition_and_keys_must_both_hold(tmp_path: Path) -> None:
    make_cache(tmp_path)
    (tmp_path / "keys").write_text("v1#0\nv2#0\n")
    where = "source != 'v1'"
    run("copy", tmp_path / "cache", tmp_path / "c", "--keys", tmp_path / "keys", "--where", where)
    assert clips_of(opened(tmp_path / "c")).keys() == {"v2#0"}


@pytest.mark.slow
def test_a_merge_takes_clips_of_the_same_source_once_and_ok_ones_first(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path, "one"), make_cache(tmp_path, "other", format="zarr")
    failed = failed_of(open_again(one.storage))
    assert ("v0#0", "corrupt") in failed
    again = tmp_path / "again"
    run("copy", tmp_path / "other", again, "--where", "source in ('v1', 'v3')")
    printed = run("merge", tmp_path / "one", again, "-o", tmp_path / "all")
    assert "2 clips that several caches have are taken once" in printed
    found = clips_of(opened(tmp_path / "all"))
    assert found == clips_of(open_again(one.storage))
    assert failed_of(opened(tmp_path / "all")) == failed
    # A clip that failed in the first cache and is ok in the second one is taken from there.
    repaired = reopened(one)
    repair_cache(one.storage, {ShardId(VIDEOS, 0): [0]})
    fill_cache(reopened(repaired), seed=9)
    whole = clips_of(open_again(one.storage))
    assert "v0#0" in whole
    run("merge", tmp_path / "other", tmp_path / "one", "-o", tmp_path / "best")
    best = clips_of(opened(tmp_path / "best"))
    assert best["v0#0"] == whole["v0#0"]
    assert best.keys() == whole.keys()
    assert {key for key, _ in failed_of(opened(tmp_path / "best"))} == {"v9#0"}
    assert other.manifest.fingerprint == one.manifest.fingerprint


@pytest.mark.slow
def test_a_merge_finds_an_ok_clip_whatever_a_further_cache_says_of_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_with(tmp_path, "rejecting", 0, reason="unreadable")
    monkeypatch.setattr(tool, "FAILED", set())
    make_with(tmp_path, "other", 0, identity="other")
    make_cache(tmp_path, "ok")
    monkeypatch.undo()
    assert ("v0#0", "corrupt") in failed_of(open_again(make_cache(tmp_path, "failed").storage))
    good = clips_of(opened(tmp_path / "ok"))["v0#0"]
    refuses, has_other = itertools.permutations(["rejecting", "failed", "ok"]), "other failed ok"
    merges = [*((names, "first") for names in refuses), (has_other.split(), "last")]
    merges.append((["failed", "other", "ok"], "first"))
    for number, (names, prefer) in enumerate(merges):
        target = tmp_path / f"all{number}"
        urls = [tmp_path / name for name in names]
        run("merge", *urls, "-o", target, "--prefer", prefer)
        assert clips_of(opened(target)).get("v0#0") == good, names
        assert {key for key, _ in failed_of(opened(target))} == {"v9#0"}, names


@pytest.mark.slow
def test_a_merge_says_of_how_many_clips_the_captions_differ(tmp_path: Path) -> None:
    old, new = make_cache(tmp_path, "old"), make_cache(tmp_path, "new")
    urls = old.storage.url, new.storage.url
    assert "other captions" not in run("merge", *urls, "-o", tmp_path / "same", "--dry-run")
    relabel(new, ShardId(VIDEOS, 0))
    num = new.manifest.num_rows(ShardId(VIDEOS, 0))
    for first, *others, caption in ((*urls, "caption 1"), (*urls[::-1], "new 1")):
        target = tmp_path / caption
        printed = run("merge", first, *others, "-o", target)
        assert f"captions {num} of these have other captions or kept columns" in printed
        assert opened(target).sample("v1#0")["caption"] == caption


def test_keys_may_come_with_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes("\ufeffa#0\r\n  \r\n\r\n b#0\n\t\n".encode())
    assert read_keys(path) == {"a#0", " b#0"}


def test_kept_columns_of_a_merge_have_the_types_of_the_first_cache(tmp_path: Path) -> None:
    def renamed(number: int, source: Any = tool._source) -> dict[str, Any]:
        return {**source(number), "name": f"text{number}"}

    numbers = make_cache(tmp_path, "numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "_source", renamed)
        make_cache(tmp_path, "texts", score=pa.string())
    run("merge", tmp_path / "texts", numbers.storage.url, "-o", tmp_path / "all")
    table = opened(tmp_path / "all").table()
    found = dict(zip(table["source"].to_pylist(), table["score"].to_pylist(), strict=True))
    assert [found[name] for name in ("v1", "v9", "text1", "text9")] == ["0.1", "0.9", "0.1", "0.9"]
    assert not verify(Storage(str(tmp_path / "all"))).problems


@pytest.mark.slow
def test_the_first_generation_says_where_all_is_from(tmp_path: Path) -> None:
    one = make_fragmented(tmp_path, "one")
    two = make_cache(tmp_path, "two")
    run("merge", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "all")
    (generation,) = read_manifest(Storage(str(tmp_path / "all"))).generations
    assert (generation.kind, generation.num_imported) == ("merge", 9)
    for parent, cache in zip(generation.parents, (one, two), strict=True):
        manifest = reopened(cache).manifest
        assert parent.url == cache.storage.url
        assert parent.fingerprint == manifest.fingerprint
        assert parent.generation == len(manifest.generations)
        assert parent.sha256 == manifest.generations[-1].sha256
    run("copy", tmp_path / "all", tmp_path / "some", "--where", "width > 1")
    (generation,) = read_manifest(Storage(str(tmp_path / "some"))).generations
    assert (generation.kind, generation.selection) == ("copy", "where width > 1")


@pytest.mark.slow
def test_sources_are_known_in_the_new_cache(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)

    def known(path: Path) -> dict[str, Any]:
        storage = Storage(str(path))
        manifest = read_manifest(storage)
        planned = PlannedCache(config=cache.config, manifest=manifest, storage=storage)
        return KnownCache(storage, manifest, planned.plan).sources

    run("copy", tmp_path / "cache", tmp_path / "copy")
    assert known(tmp_path / "copy") == known(tmp_path / "cache")
    assert known(tmp_path / "copy")["v9"].is_rejected
    run("copy", tmp_path / "cache", tmp_path / "some", "--where", "source < 'v3'")
    assert known(tmp_path / "some").keys() == {"v1", "v2"}


@pytest.mark.slow
def test_caches_of_other_formats_and_codecs_merge_into_the_first_ones(tmp_path: Path) -> None:
    make_cache(tmp_path, "one")
    make_cache(tmp_path, "two", format="parquet")
    make_cache(tmp_path, "three", compression={"codec": "none"}, shard_clips=4)
    run("copy", tmp_path / "two", tmp_path / "some", "--where", "source in ('v1', 'v2')")
    run("copy", tmp_path / "three", tmp_path / "more", "--where", "source not in ('v1', 'v2')")
    run("merge", tmp_path / "some", tmp_path / "more", "-o", tmp_path / "all")
    assert samples(tmp_path / "all") == samples(tmp_path / "one")
    manifest = read_manifest(Storage(str(tmp_path / "all")))
    assert (manifest.format, manifest.shard_clips) == ("parquet", 3)
    assert not verify(Storage(str(tmp_path / "all"))).problems


@pytest.mark.slow
def test_sources_whose_clips_are_still_to_come_are_not_known_or_partial_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`precompute` on the copy takes them in: new, or completed where some of their clips are there."""

    def longer(number: int, source: Any = tool._source) -> dict[str, Any]:
        row = source(number)
        return row if row["kind"] == "image" else {**row, "frames": 10, "duration_s": 0.4}

    monkeypatch.setattr(tool, "_source", longer)
    cache = make_cache(tmp_path)
    whole = KnownCache(cache.storage, cache.manifest, cache.plan)
    for number in (1, 2):
        (tmp_path / f"cache/samples/{VIDEOS}/{number:06d}.parquet").unlink()
        (tmp_path / f"cache/latents/{VIDEOS}/c/{number}/0/0/0/0").unlink()
    run("copy", tmp_path / "cache", tmp_path / "copy", "--allow-unfinished")
    there = set(opened(tmp_path / "copy").table(["key"])["key"].to_pylist())
    clips: dict[str, set[str]] = {}
    for _, rows in whole.shards():
        for source, key in zip(rows["source"].to_pylist(), rows["key"].to_pylist(), strict=True):
            clips.setdefault(source, set()).add(key)
    storage = Storage(str(tmp_path / "copy"))
    manifest = read_manifest(storage)
    known = KnownCache(storage, manifest, PlanReader(storage, manifest)).sources
    for name, keys in clips.items():
        if not keys & there:
            assert name not in known
        elif keys <= there:
            assert known[name] == whole.sources[name]
        else:
            assert known[name] == replace(whole.sources[name], is_partial=True)
    assert {name for name, keys in clips.items() if not keys & there} == {"v2", "v4"}
    assert {name for name, keys in clips.items() if keys & there and keys - there} == {"v1", "v5"}
    assert known["v9"].is_rejected


@pytest.mark.slow
def test_a_parent_is_found_as_it_was_and_no_other_one_is(tmp_path: Path) -> None:
    cache, other = make_cache(tmp_path), make_cache(tmp_path, "other")
    run("copy", tmp_path / "cache", tmp_path / "copy")
    (parent,) = read_manifest(Storage(str(tmp_path / "copy"))).generations[0].parents
    grown = make_fragmented(tmp_path, "grown")
    assert is_parent(cache.manifest, parent)
    assert not is_parent(other.manifest, parent)
    assert not is_parent(grown.manifest, parent)
    found = Parents({}).open(parent)
    assert found.storage.url == cache.storage.url
    assert found.manifest == read_manifest(cache.storage)
    given = OpenCache(storage=cache.storage, manifest=cache.manifest)
    assert Parents({}, [given]).open(parent).storage is cache.storage
    (tmp_path / "cache").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "cache")
    with pytest.raises(CacheError, match="is not the cache any more that was copied from"):
        Parents({}).open(parent)


@pytest.mark.slow
def test_growing_a_copy_finds_its_sources_known(tmp_path: Path) -> None:
    """What is compared is in tests/system/test_compacted.py; here: the recipe and settings fit."""
    make_cache(tmp_path)
    run("copy", tmp_path / "cache", tmp_path / "copy", "--format", "parquet")
    manifest = read_manifest(Storage(str(tmp_path / "copy")))
    assert manifest.config["cache"]["format"] == "parquet"
    config = load_config(str(tmp_path / "config.yaml"), [])
    assert manifest.config["clips"] == config.clips.model_dump(mode="json")
