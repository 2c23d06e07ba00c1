"""Shards that are there already are taken only if they are of the clips that are planned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentcache
import tests.tools.planned
from latentcache.core.records import ShardId
from latentcache.errors import CacheError, RunStoppedError
from latentcache.format.commit import adopt_shard
from latentcache.format.paths import CACHE_JSON, INDEX, sample_path
from latentcache.format.shards import get_format
from latentcache.format.snapshot import current_index, shard_of
from latentcache.inspecting.verify import verify
from latentcache.planning.planned import PlannedCache
from tests.tools.caches import read_files, run_inline
from tests.tools.copied import reopened
from tests.tools.planned import fill_cache, make_cache, plan_cache

SHARD = ShardId("5x64x96", 0)
CHANGES = {
    "is of other clips": {"name": "other"},
    "is of files with other content": {"identity": "replaced"},
    "has other values in its column caption": {"caption": "an edited caption"},
    "has other values in its column score": {"score": 7.0},
}
changes = pytest.mark.parametrize(("what", "change"), CHANGES.items(), ids=lambda x: str(x)[-12:])


@pytest.fixture(name="change_source")
def change_source_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on, a video of the corpus has other facts."""
    source = tests.tools.planned._source

    def change(**facts: Any) -> None:
        def changed(number: int) -> dict[str, Any]:
            return source(number) | (facts if number == 1 else {})

        monkeypatch.setattr("tests.tools.planned._source", changed)

    return change


def forget(cache: Path, *names: str) -> None:
    for name in (CACHE_JSON, INDEX, *names):
        path = cache / name
        if not path.exists():
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def adopt(cache: PlannedCache, shard: ShardId = SHARD) -> Any:
    manifest = cache.manifest
    layout = manifest.layouts()[shard.bucket]
    place = (cache.storage, get_format(manifest.format), layout)
    return adopt_shard(*place, cache.plan.shard(shard), manifest.fingerprint)


@changes
def test_a_cache_is_not_made_over_shards_of_another_corpus(
    tmp_path: Path, change_source: Callable[..., None], what: str, change: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    make_cache(tmp_path)
    forget(cache, "generations", "plan")
    before = read_files(cache)
    change_source(**change)
    with pytest.raises(CacheError, match=f"{what}.* than this corpus has there. Nothing was"):
        plan_cache(tmp_path, str(cache))
    assert read_files(cache) == before


@changes
def test_an_object_of_a_cache_that_was_here_stops_the_run(
    tmp_path: Path, change_source: Callable[..., None], what: str, change: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    make_cache(tmp_path)
    forget(cache, "generations", "plan", "samples")
    change_source(**change)
    planned = plan_cache(tmp_path, str(cache))
    for _ in range(2):  # what is refused does not count the next time
        with pytest.raises(RunStoppedError, match=f"{what}.* than was planned.*--repair"):
            fill_cache(planned)
        assert not planned.storage.exists(sample_path(*SHARD))
    path = get_format("zarr").path(planned.manifest.layouts()[SHARD.bucket], SHARD.number)
    assert [problem.path for problem in verify(planned.storage).problems] == [path]
    run_inline("verify", planned.storage.url, "--repair")
    fill_cache(reopened(planned))
    assert not verify(planned.storage).problems
    clips = latentcache.open_cache(planned.storage.url).table(["key", "caption", "score"])
    wanted = {"name": "v1", "caption": "caption 1", "score": 0.1} | change
    assert {
        "key": f"{wanted['name']}#0",
        "caption": wanted["caption"],
        "score": wanted["score"],
    } in clips.to_pylist()
    index = current_index(planned.storage, reopened(planned).manifest)
    assert SHARD not in map(shard_of, index.to_pylist())


@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_shards_of_the_same_clips_are_taken(tmp_path: Path, shard_format: str) -> None:
    cache = tmp_path / "cache"
    before = make_cache(tmp_path, format=shard_format)
    tables = read_files(cache / "samples")
    forget(cache, "generations", "plan")
    planned = plan_cache(tmp_path, str(cache), format=shard_format)
    assert not planned.missing_shards()
    shutil.rmtree(cache / "samples")
    for shard in before.planned_shards():
        assert adopt(planned, shard).committed_before
    assert read_files(cache / "samples") == tables
    assert not verify(planned.storage).problems


def test_of_shards_that_do_not_say_what_they_are_of_columns_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change_source: Callable[..., None]
) -> None:
    """Shards of earlier versions, which had no digest of their clips."""
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("latentcache.format.commit.clips_facts", lambda _: {})
        made = make_cache(tmp_path)
    tables = read_files(cache / "samples")
    shutil.rmtree(cache / "samples")
    for shard in made.planned_shards():
        assert adopt(made, shard).committed_before
    assert read_files(cache / "samples") == tables
    forget(cache, "generations", "plan")
    assert not plan_cache(tmp_path, str(cache)).missing_shards()
    forget(cache, "generations", "plan")
    change_source(caption="an edited caption")
    with pytest.raises(CacheError, match="has other values in its column caption than this corpus"):
        plan_cache(tmp_path, str(cache))


def test_a_cache_with_its_plan_is_put_right_whatever_the_corpus_says_now(
    tmp_path: Path, change_source: Callable[..., None]
) -> None:
    made = make_cache(tmp_path)
    forget(tmp_path / "cache")
    change_source(caption="an edited caption")
    with pytest.raises(AssertionError):  # nothing was planned: the corpus is to be compared again
        plan_cache(tmp_path, made.storage.url)
    assert made.storage.exists(CACHE_JSON)


def test_verify_finds_a_shard_of_other_files(
    tmp_path: Path, change_source: Callable[..., None]
) -> None:
    old = make_cache(tmp_path, "old")
    change_source(identity="replaced")
    new = make_cache(tmp_path, "new")
    path = sample_path(*SHARD)
    objects = get_format(old.manifest.format).path(old.manifest.layouts()[SHARD.bucket], 0)
    for name in (path, objects):
        new.storage.write(name, old.storage.read(name))
    problems = verify(new.storage).problems
    assert [problem.path for problem in problems] == [path]
    assert "its clips are of other files" in problems[0].what
