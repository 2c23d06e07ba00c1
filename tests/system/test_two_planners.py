"""Several runs that plan one cache at once: each clip is planned once, and one recipe counts."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from latentcache.config.files import load_config
from latentcache.errors import CorruptionError, RecipeMismatchError
from latentcache.format.generations import generation_path
from latentcache.format.paths import CACHE_JSON, plan_path
from latentcache.inspecting.leftovers import find_leftovers
from latentcache.inspecting.verify import verify
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import grow_cache
from latentcache.running.driver import Run
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    finish,
    make_config,
    make_corpus,
    objects_in,
    read_files,
    run_inline,
    samples_of,
)
from tests.tools.two_runs import config_for, planned_keys, prepared_in

pytestmark = pytest.mark.usefixtures("kept_pools")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("two") / "corpus", 12, frames=41)


def grow_first(other: Path) -> mock._patch[object]:
    """Let another run plan just before this one makes its step count."""
    create = Storage.create
    config = load_config(str(other))

    def and_the_other_is_faster(storage: Storage, path: str, data: bytes) -> bool:
        if path == generation_path(1):
            with mock.patch.object(Storage, "create", create):
                grow_cache(config)
        return create(storage, path, data)

    return mock.patch.object(Storage, "create", and_the_other_is_faster)


@pytest.mark.parametrize("moment", ["looked", "listed", "made", "planned"])
def test_planning_beside_another_run_plans_each_clip_once(
    corpus: Path, tmp_path: Path, moment: str
) -> None:
    """Whenever the other comes in between: it is no foreign folder, and nothing is planned twice."""
    config = load_config(str(config_for(tmp_path, corpus, tmp_path / "cache")))
    exists, listing, create = Storage.exists, Storage.list, Storage.create
    waiting = [moment]

    def let_the_other_plan(now: str) -> None:
        if waiting == [now]:
            waiting.clear()
            grow_cache(config)

    def and_exists(storage: Storage, path: str) -> bool:
        found = exists(storage, path)
        if path == CACHE_JSON:
            let_the_other_plan("looked")
        return found

    def and_lists(storage: Storage, path: str) -> dict[str, int]:
        found = listing(storage, path)
        if not path:
            let_the_other_plan("listed")
        return found

    def and_creates(storage: Storage, path: str, data: bytes) -> bool:
        let_the_other_plan("made")
        if path == generation_path(1):
            let_the_other_plan("planned")
        return create(storage, path, data)

    with (
        mock.patch.object(Storage, "exists", and_exists),
        mock.patch.object(Storage, "list", and_lists),
        mock.patch.object(Storage, "create", and_creates),
    ):
        prepared = grow_cache(config)
    assert not waiting
    keys = planned_keys(prepared)
    assert len(keys) == len(set(keys)) == 97
    assert len(prepared.manifest.generations) == 1
    assert prepared.missing_shards() == prepared.planned_shards()


def test_what_a_run_tries_of_the_storage_is_no_foreign_file(corpus: Path, tmp_path: Path) -> None:
    """Nor is it where that run was killed meanwhile."""
    config = load_config(str(config_for(tmp_path, corpus, tmp_path / "cache")))
    with mock.patch.object(Storage, "delete"):
        Storage(config.cache.url).creates_exclusively(CACHE_JSON)
    assert any((tmp_path / "cache").iterdir())
    assert grow_cache(config).missing_shards()


def test_of_two_recipes_at_once_one_is_refused(corpus: Path, tmp_path: Path) -> None:
    path = config_for(tmp_path, corpus, tmp_path / "cache")
    configs = [load_config(str(path), [f"cache.dtype={dtype}"]) for dtype in ("float32", "float16")]
    create = Storage.create
    done: list[PlannedCache] = []

    def after_the_other(storage: Storage, path: str, data: bytes) -> bool:
        if path == CACHE_JSON:
            with mock.patch.object(Storage, "create", create):
                done.append(grow_cache(configs[1]))
        return create(storage, path, data)

    with (
        mock.patch.object(Storage, "create", after_the_other),
        pytest.raises(RecipeMismatchError, match="dtype: float16 in the cache, float32 now"),
    ):
        grow_cache(configs[0])
    (winner,) = done
    list(Run(winner, winner.missing_shards()).events())
    findings = verify(winner.storage)
    assert not findings.problems
    assert findings.num_clips == 97
    left = find_leftovers(winner.storage.files(), winner.manifest, time.time() + 1e6)
    assert not left.removable
    assert not left.foreign


def config_of(folder: Path, corpus: Path, name: str, videos: str) -> Path:
    """A configuration of some of the videos, into the folder's cache."""
    (folder / name).mkdir()
    source = {"source": f"{corpus}/{videos}"}
    return make_config(folder / name, corpus, str(folder / "cache"), corpus=source)


def fresh_samples(folder: Path, corpus: Path, videos: str) -> dict[str, bytes]:
    """What one run over all of the videos makes."""
    config = config_of(folder, corpus, "fresh", videos)
    assert run_inline("precompute", config, f"cache.url={folder}/whole")[0] == 0
    return samples_of(folder / "whole")


@pytest.mark.long
def test_two_corpora_at_once_both_grow_the_cache(corpus: Path, tmp_path: Path) -> None:
    """They share some sources, which are planned once."""
    one, other = (
        config_of(tmp_path, corpus, name, f"v[{videos}].mp4")
        for name, videos in (("one", "0-5"), ("other", "4-9"))
    )
    finish(("precompute", one), ("precompute", other), status=0)
    assert samples_of(tmp_path / "cache") == fresh_samples(tmp_path, corpus, "v[0-9].mp4")
    prepared = grow_cache(load_config(str(one)))
    assert len(prepared.manifest.generations) == 2
    keys = planned_keys(prepared)
    assert len(keys) == len(set(keys)) == 80
    assert not verify(prepared.storage).problems


def test_who_plans_second_looks_again_and_its_tables_count_for_nothing(
    corpus: Path, tmp_path: Path
) -> None:
    one, other = (
        config_of(tmp_path, corpus, name, f"v[{videos}].mp4")
        for name, videos in (("one", "0-2"), ("other", "2-3"))
    )
    with grow_first(other):
        prepared = grow_cache(load_config(str(one)))
    keys = planned_keys(prepared)
    assert len(keys) == len(set(keys)) == 32
    first, second = prepared.manifest.generations
    assert [part.num_clips for part in (*first.parts, *second.parts)] == [16, 16]
    list(Run(prepared, prepared.missing_shards()).events())
    expected = samples_of(tmp_path / "cache")
    assert not verify(prepared.storage).problems
    left = find_leftovers(prepared.storage.files(), prepared.manifest, time.time() + 1e6)
    assert {file.path.split("/")[0] for file in left.removable} == {"plan"}
    assert all("/000001-" in file.path for file in left.removable)
    assert not left.foreign
    for file in left.removable:
        prepared.storage.delete(file.path)
    assert samples_of(tmp_path / "cache") == expected
    assert not verify(prepared.storage).problems


def test_a_kept_column_of_another_type_is_that_of_the_cache_or_refused(
    corpus: Path, tmp_path: Path
) -> None:
    listed, cache = tmp_path / "list.parquet", tmp_path / "cache"
    names = [str(corpus / f"v{n}.mp4") for n in range(2)]

    def job(kept: pa.Array) -> tuple[int, str]:
        pq.write_table(pa.table({"video": names, "score": kept}), listed)
        sections = {"source": str(listed), "keep": ["score"]}
        return run_inline("precompute", make_config(tmp_path, listed, str(cache), corpus=sections))

    def scores() -> dict[str, int]:
        table = latentcache.open_cache(str(cache)).table(["source", "score"])
        assert table["score"].type == pa.int64()
        return dict(zip(*table.to_pydict().values(), strict=True))

    assert job(pa.array([1, 2], pa.int64()))[0] == 0
    before = objects_in(cache)
    for kept in (pa.array([1, 2], pa.int32()), pa.array([1, 3], pa.int16())):
        assert job(kept)[0] == 0
        assert scores() == dict(zip(names, kept.to_pylist(), strict=True))
    now = read_files(cache)
    for other in (pa.array([1.5, 3.0]), pa.array(["good", "bad"])):
        status, printed = job(other)
        assert status == 2
        assert f"corpus.keep: score is int64 in the cache, {other.type} now" in printed
    assert read_files(cache) == now
    assert objects_in(cache) == before
    assert not verify(Storage(str(cache))).problems


def test_a_plan_of_another_recipe_is_refused(corpus: Path, tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, corpus)
    path = config_for(tmp_path, corpus, tmp_path / "other")
    other = grow_cache(load_config(str(path), ["cache.dtype=float16"]))
    places = [
        plan_path(cache.manifest.generations[0].folder, "5x64x96") for cache in (prepared, other)
    ]
    assert places[0] != places[1]  # it would lie beside, and not in the place of the other
    prepared.storage.write(places[0], other.storage.read(places[1]))
    with pytest.raises(CorruptionError, match="another recipe"):
        list(Run(prepared, prepared.missing_shards()).events())
    assert not prepared.storage.list("samples/5x64x96")
    assert verify(prepared.storage).problems
