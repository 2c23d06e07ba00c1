"""What copy and merge refuse, and that they write nothing then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.derived import check_places
from latentcache.errors import ConfigError
from latentcache.format.manifest import read_manifest
from latentcache.planning.known import KnownCache
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files
from tests.tools.copied import (
    VIDEOS,
    clips_of,
    make_fragmented,
    make_with,
    open_again,
    opened,
    reopened,
    run,
)
from tests.tools.planned import make_cache

pytestmark = pytest.mark.usefixtures("kept_pools")


def make_other_content(folder: Path, name: str) -> PlannedCache:
    """A cache whose source v1 has the same name as elsewhere, and another content."""
    return make_with(folder, name, 1, identity="other")


@pytest.mark.slow
def test_a_source_of_other_content_is_refused_unless_one_is_preferred(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path, "one"), make_other_content(tmp_path, "other")
    urls = (tmp_path / "one", tmp_path / "other")
    printed = run("merge", *urls, "-o", tmp_path / "all", status=2)
    assert "1 sources have the same name and other content in several caches: v1." in printed
    assert "--prefer first" in printed
    assert not (tmp_path / "all").exists()
    first, last = clips_of(open_again(one.storage)), clips_of(open_again(other.storage))
    assert first["v1#0"] != last["v1#0"]
    for prefer, expected in (("first", first), ("last", {**first, "v1#0": last["v1#0"]})):
        run("merge", *urls, "-o", tmp_path / prefer, "--prefer", prefer)
        assert clips_of(opened(tmp_path / prefer)) == expected
        other = {"first": "last", "last": "first"}[prefer]
        for more, asked in (([], "without --prefer"), (["--prefer", other], f"--prefer {other}")):
            printed = run("merge", *urls, "-o", tmp_path / prefer, *more, status=2)
            assert f"a merge of all clips, --prefer {prefer}, in zarr, and asked" in printed
            assert f"one of all clips, {asked}, in zarr. Run it with the same" in printed
        storage = Storage(str(tmp_path / prefer))
        manifest = read_manifest(storage)
        planned = PlannedCache(config=one.config, manifest=manifest, storage=storage)
        identity = KnownCache(storage, manifest, planned.plan).sources["v1"].identity
        assert identity == {"first": "id1", "last": "other"}[prefer]


@pytest.mark.slow
def test_caches_of_other_recipes_are_refused_with_what_differs(tmp_path: Path) -> None:
    make_cache(tmp_path, "one")
    run("copy", tmp_path / "one", tmp_path / "two")
    other = make_cache(tmp_path, "other", dtype="float32")
    assert other.manifest.spec.dtype == "float32"
    urls = (tmp_path / "one", tmp_path / "two", tmp_path / "other")
    printed = run("merge", *urls, "-o", tmp_path / "all", status=2)
    assert "were made with different recipes" in printed
    assert f"dtype: bfloat16 in {tmp_path}/one, float32 in {tmp_path}/other" in printed
    assert not (tmp_path / "all").exists()


@pytest.mark.slow
def test_an_unfinished_cache_is_copied_only_where_that_is_allowed(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    clips = clips_of(open_again(cache.storage))
    for name in (f"samples/{VIDEOS}/000001.parquet", f"latents/{VIDEOS}/c/1/0/0/0/0"):
        (tmp_path / "cache" / name).unlink()
    printed = run("copy", tmp_path / "cache", tmp_path / "copy", status=2)
    assert "is not finished: 1 of its shards are still to be encoded or copied" in printed
    assert "--allow-unfinished" in printed
    assert not (tmp_path / "copy").exists()
    run("copy", tmp_path / "cache", tmp_path / "copy", "--allow-unfinished")
    lost = set(reopened(cache).plan.table(cache.planned_shards()[2])["key"].to_pylist())
    assert clips_of(opened(tmp_path / "copy")).keys() == clips.keys() - lost


@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    make_fragmented(tmp_path)
    for job in (
        ("copy", tmp_path / "cache", tmp_path / "new", "--dry-run"),
        ("copy", tmp_path / "cache", tmp_path / "new", "--format=parquet", "--dry-run"),
    ):
        printed = run(*job)
        assert "Dry run: nothing was written." in printed
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    make_cache(tmp_path)
    make_cache(tmp_path, "other")
    other = read_files(tmp_path / "other")
    printed = run("copy", tmp_path / "cache", tmp_path / "other", status=2)
    assert "is a cache already, and was not made by `latentcache copy`" in printed
    assert read_files(tmp_path / "other") == other
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    printed = run("copy", tmp_path / "cache", tmp_path / "mine", status=2)
    assert "is not empty and is no cache: it holds notes.txt" in printed
    run("copy", tmp_path / "cache", tmp_path / "new", "--where", "source = 'v1'")
    for more, what in (
        (["--where", "source = 'v2'"], "is a copy of where source = 'v1', in zarr"),
        (["--where", "source = 'v1'", "--format", "parquet"], "is a copy of where source = 'v1'"),
    ):
        printed = run("copy", tmp_path / "cache", tmp_path / "new", *more, status=2)
        assert what in printed
    printed = run("copy", tmp_path / "other", tmp_path / "new", "--where=source = 'v1'", status=2)
    assert f"is a copy of {tmp_path}/cache, as they were" in printed
    run("copy", tmp_path / "cache", tmp_path / "new", "--where", "source = 'v1'")


@pytest.mark.parametrize(
    ("urls", "target"),
    [
        (["a"], "a"),
        (["a/"], "./a"),
        (["a"], "a/b"),
        (["a/b"], "a"),
        (["s3://b/x", "s3://b/y"], "s3://b/y/"),
        (["a", "a"], "b"),
        (["a"], "local://a"),
        (["file://a", "simplecache::a"], "b"),
    ],
)
def test_a_cache_is_not_copied_into_itself_nor_named_twice(
    urls: Sequence[str], target: str
) -> None:
    with pytest.raises(ConfigError, match=r"the same place|named twice"):
        check_places(urls, target)


def test_names_that_only_begin_alike_are_other_places() -> None:
    check_places(["a", "s3://b/x"], "ab")
    check_places(["s3://b/x"], "s3://b/xy")


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["copy", "{c}"], "a copy takes a cache and where to copy it, and got 1"),
        (["merge", "{c}", "-o", "{n}"], "a merge takes two caches or more"),
        (["copy", "{c}", "{n}", "--where", "nothing > 1"], "there is no column 'nothing'"),
        (["copy", "{c}", "{n}", "--where", "row >"], "(character "),
        (["copy", "{c}", "{n}", "--where", "source = 'no'"], "No clip is selected"),
        (
            ["copy", "{c}", "{n}", "--where", "frames > 99"],
            "clips fits the condition frames > 99. There, frames is ",
        ),
        (
            ["copy", "{c}", "{n}", "--where", "status = 'failed'"],
            "status = 'failed'. There, status is 'ok', for only ok clips are chosen. Nothing",
        ),
        (
            ["copy", "{c}", "{n}", "--where", "source = 'the row'"],
            "There, source is 'v3', 'v6', 'v1' and others. Nothing",
        ),
        (["copy", "{c}", "{n}", "--keys", "{t}/absent"], "--keys: cannot read"),
        (["copy", "{c}", "{n}", "--keys", "{t}/empty"], "has no key in it"),
        (["copy", "{c}", "{n}", "--keys", "{t}/bytes"], "is no text in UTF-8"),
        (
            ["copy", "{c}", "{n}", "--keys", "{t}/wrong"],
            "no ok clip with 2 of 3 keys: 'no#0', 'v0#0'",
        ),
        (["copy", "{c}", "{n}", "run.workers=2"], "run.workers: this job copies what is stored"),
        (["copy", "{t}/nowhere", "{n}"], "there is no cache here"),
    ],
)
def test_wrong_arguments_get_one_message(args: list[str], what: str, tmp_path: Path) -> None:
    make_cache(tmp_path)
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "wrong").write_text("v1#0\nv0#0\nno#0\n")
    names = {"c": tmp_path / "cache", "n": tmp_path / "new", "t": tmp_path}
    printed = run(args[0], *(arg.format(**names) for arg in args[1:]), status=2)
    assert what in printed
    assert "Error: " in printed
    assert not (tmp_path / "new").exists()
