"""Several runs on one cache at once: one correct cache, nobody's rows lost, and the work shared."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.core.records import Shard, ShardId, ShardReport
from latentcache.errors import CorruptionError, RecipeMismatchError
from latentcache.format import snapshot as snapshots
from latentcache.format.commit import commit_failed_shard
from latentcache.format.manifest import Manifest
from latentcache.format.paths import CACHE_JSON, sample_path
from latentcache.format.snapshot import build_index, publish, read_index
from latentcache.format.tables import from_parquet
from latentcache.inspecting.verify import verify
from latentcache.planning import create
from latentcache.planning.create import _planned, create_cache
from latentcache.planning.plan import Plan
from latentcache.planning.planned import PlannedCache, failed_shards
from latentcache.planning.planner import plan_corpus
from latentcache.planning.recipe import make_manifest, resolve_encoder
from latentcache.running.driver import Run
from latentcache.running.events import GaveUp, Task
from latentcache.running.publisher import RunSnapshot
from latentcache.running.worker import ShardWorker
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    assert_same_cache,
    committed,
    make_config,
    make_corpus,
    run_inline,
    start_job,
)
from tests.tools.planned import planned_from

SOME_FAILED = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("two") / "corpus", 12, frames=41)


@pytest.fixture(scope="module", params=["zarr", "parquet"])
def clean(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A cache that one run has made, in the format of its folder's name."""
    folder = tmp_path_factory.mktemp("clean")
    cache = folder / request.param
    config = config_for(folder, corpus, cache, request.param)
    assert run_inline("precompute", config)[0] == SOME_FAILED
    return cache


def config_for(folder: Path, corpus: Path, cache: Path, shard_format: str = "zarr") -> Path:
    return make_config(
        folder, corpus, str(cache), cache={"url": str(cache), "format": shard_format}
    )


def prepared_in(folder: Path, corpus: Path, name: str = "cache") -> PlannedCache:
    return planned_from(config_for(folder, corpus, folder / name))


def finish(*jobs: tuple[object, ...]) -> list[str]:
    """Start jobs together; each must end well. Returns what each printed."""
    processes = [start_job(str(job), *arguments) for job, *arguments in jobs]
    printed = [process.communicate(timeout=240) for process in processes]
    for process, (out, err) in zip(processes, printed, strict=True):
        assert process.returncode == SOME_FAILED, out + err
        assert "Traceback" not in err
    return [out for out, _ in printed]


def test_two_runs_started_together_make_one_cache(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, corpus, tmp_path / "cache", clean.name)
    for out in finish(("precompute", config), ("precompute", config)):
        assert "cache    97 clips ok, 0 failed, 2 sources rejected" in out
    assert_same_cache(tmp_path / "cache", clean)


def test_resume_joins_a_run_that_goes_on(corpus: Path, clean: Path, tmp_path: Path) -> None:
    if clean.name == "parquet":
        pytest.skip("who writes what does not depend on the format")
    cache = tmp_path / "cache"
    first = start_job("precompute", config_for(tmp_path, corpus, cache, clean.name))
    while not (cache / "cache.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    finish(("resume", cache))
    out, err = first.communicate(timeout=240)
    assert first.returncode == SOME_FAILED, out + err
    assert_same_cache(cache, clean)


@pytest.mark.long
def test_two_runs_on_ray_make_one_cache(corpus: Path, clean: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, corpus, tmp_path / "cache", clean.name)
    job = ("precompute", config, "run.runner=ray")
    finish(job, job)
    assert_same_cache(tmp_path / "cache", clean)


def rounds(*runs: Run) -> Iterator[None]:
    """Let runs go on in turn, an event each."""
    for _ in itertools.zip_longest(*(run.events() for run in runs)):
        yield


def test_two_runs_share_the_work(corpus: Path, tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, corpus)
    tasks = prepared.missing_shards()
    runs = [Run(prepared, tasks) for _ in range(2)]
    for _ in rounds(*runs):
        pass
    written = [run.summary.shards for run in runs]
    elsewhere = [run.summary.shards_elsewhere for run in runs]
    assert [w + e for w, e in zip(written, elsewhere, strict=True)] == [len(tasks)] * 2
    assert all(0 < count < len(tasks) for count in written)
    assert sum(written) < 1.3 * len(tasks)  # 1.0 to 1.06; 1.5 and more where both go in one order
    assert runs[0].published.num_rows == runs[1].published.num_rows == len(tasks)


def test_a_shard_that_another_run_committed_meanwhile_is_not_written(
    corpus: Path, tmp_path: Path
) -> None:
    prepared = prepared_in(tmp_path, corpus)
    tasks = prepared.missing_shards()
    encode_clips = ShardWorker._encode_clips
    seen: dict[str, tuple[int, int]] = {}

    def slowly(worker: ShardWorker, shard: Shard, *args: object) -> object:
        if shard.index == 1:  # as if another run encoded it in that time
            encoded = encode_clips(worker, shard, *args)  # type: ignore[arg-type]
            layout = prepared.manifest.layouts()[shard.bucket.name]
            commit_failed_shard(
                prepared.storage, layout, shard, "by the other", (), prepared.manifest.fingerprint
            )
            seen.update(committed(tmp_path / "cache"))
            return encoded
        return encode_clips(worker, shard, *args)  # type: ignore[arg-type]

    with mock.patch.object(ShardWorker, "_encode_clips", slowly):
        run = Run(prepared, [task for task in tasks if task.bucket == "5x64x96"][:3])
        list(run.events())
    name = sample_path("5x64x96", 1)
    assert committed(tmp_path / "cache")[name] == seen[name]
    assert (run.summary.shards, run.summary.shards_elsewhere) == (2, 1)
    assert run.summary.clips_failed == 0


def test_a_shard_that_fails_here_and_not_elsewhere_stays_as_it_is(
    corpus: Path, tmp_path: Path
) -> None:
    prepared = prepared_in(tmp_path, corpus)
    list(Run(prepared, prepared.missing_shards()).events())
    before = committed(tmp_path / "cache")
    late = Run(prepared, [])
    late._count(GaveUp(task=Task(shard=ShardId("5x64x96", 0), error="boom", attempts=4)))
    assert late.summary.shards_failed == 1
    assert committed(tmp_path / "cache") == before


def test_planning_beside_another_run_is_no_foreign_folder(corpus: Path, tmp_path: Path) -> None:
    config = load_config(str(config_for(tmp_path, corpus, tmp_path / "cache")))
    spec, identity = resolve_encoder(config)
    plan = plan_corpus(config, spec)
    manifest = make_manifest(config, spec, identity, plan)
    exists = Storage.exists

    def and_then_the_other_plans(storage: Storage, path: str) -> bool:
        found = exists(storage, path)
        if path == CACHE_JSON:
            with mock.patch.object(Storage, "exists", exists):
                create.create_cache(config, manifest, plan)
        return found

    with mock.patch.object(Storage, "exists", and_then_the_other_plans):
        prepared = create_cache(config, manifest, plan)
    assert prepared.missing_shards()


@pytest.fixture
def recipes(corpus: Path, tmp_path: Path) -> list[tuple[Config, Manifest, Plan]]:
    """Two runs into one folder, which differ in what they store."""
    path = config_for(tmp_path, corpus, tmp_path / "cache")
    configs = [load_config(str(path), [f"cache.dtype={dtype}"]) for dtype in ("float32", "float16")]
    planned = []
    for config in configs:
        spec, identity = resolve_encoder(config)
        plan = plan_corpus(config, spec)
        planned.append((config, make_manifest(config, spec, identity, plan), plan))
    return planned


def test_of_two_recipes_at_once_one_is_refused(
    recipes: list[tuple[Config, Manifest, Plan]],
) -> None:
    create = Storage.create
    done: list[PlannedCache] = []

    def after_the_other(storage: Storage, path: str, data: bytes) -> bool:
        with mock.patch.object(Storage, "create", create):
            done.append(create_cache(*recipes[1]))
        return create(storage, path, data)

    with (
        mock.patch.object(Storage, "create", after_the_other),
        pytest.raises(RecipeMismatchError, match="dtype: float16 in the cache, float32 now"),
    ):
        create_cache(*recipes[0])
    (winner,) = done
    list(Run(winner, winner.missing_shards()).events())
    assert not verify(winner.storage).problems


def test_of_two_corpora_at_once_one_is_refused(
    recipes: list[tuple[Config, Manifest, Plan]], corpus: Path, tmp_path: Path
) -> None:
    config, manifest, plan = recipes[0]
    fewer = {bucket: table.slice(1) for bucket, table in plan.buckets.items() if len(table) > 1}
    other = Plan(buckets=fewer, rejected=plan.rejected)
    spec, identity = resolve_encoder(config)
    loser = (config, make_manifest(config, spec, identity, other), other)
    storage = Storage(config.cache.url)
    storage.write(CACHE_JSON, manifest.to_bytes())  # the other has not repaired the plan yet
    for path, data in _planned(loser[1], other):
        storage.write(path, data)
    with pytest.raises(RecipeMismatchError, match="another corpus; which one cannot be said"):
        create_cache(*loser)
    assert create_cache(config, manifest, plan).missing_shards()


def test_a_kept_column_of_another_type_is_refused(corpus: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.parquet"

    def job(kept: pa.DataType) -> tuple[int, str]:
        names = [str(corpus / f"v{n}.mp4") for n in range(2)]
        pq.write_table(pa.table({"video": names, "score": pa.array([1, 2], kept)}), listed)
        config = make_config(
            tmp_path,
            listed,
            str(tmp_path / "cache"),
            corpus={"source": str(listed), "keep": ["score"]},
        )
        return run_inline("precompute", config)

    assert job(pa.int64())[0] == 0
    status, printed = job(pa.int32())
    assert status == 2
    assert "corpus.keep: score is int64 in the cache, int32 now" in printed
    assert job(pa.int64())[0] == 0


def test_a_plan_that_another_recipe_overwrote_is_refused_and_mended(
    recipes: list[tuple[Config, Manifest, Plan]],
) -> None:
    winner = create_cache(*recipes[0])
    for path, data in _planned(recipes[1][1], recipes[1][2]):
        winner.storage.write(path, data)
    with pytest.raises(CorruptionError, match=r"another recipe or corpus.*precompute"):
        list(Run(winner, winner.missing_shards()).events())
    assert not winner.storage.list("samples/5x64x96")
    winner = create_cache(*recipes[0])
    list(Run(winner, winner.missing_shards()).events())
    assert not verify(winner.storage).problems


def report_of(storage: Storage, bucket: str, shard: int) -> ShardReport:
    rows = build_index(storage).to_pylist()
    facts = next(r for r in rows if (r["bucket"], r["shard"]) == (bucket, shard))
    return ShardReport(**facts, num_frames=0, raw_bytes=0)


def places(table: pa.Table) -> set[tuple[str, int]]:
    return set(zip(table["bucket"].to_pylist(), table["shard"].to_pylist(), strict=True))


@pytest.fixture
def finished(corpus: Path, tmp_path: Path) -> Storage:
    prepared = prepared_in(tmp_path, corpus)
    list(Run(prepared, prepared.missing_shards()).events())
    return prepared.storage


def test_what_another_run_published_stays_published(finished: Storage) -> None:
    reports = [report_of(finished, "5x64x96", shard) for shard in range(2)]
    for report in reports:
        finished.delete(sample_path(report.bucket, report.shard))
    one, other = (RunSnapshot(finished, interval_s=0.0) for _ in range(2))
    one.open(set())
    other.open(set())
    for snapshot, report in zip((one, other), reports, strict=True):
        snapshot.add(report)
    assert places(read_index(finished)) >= {("5x64x96", 0), ("5x64x96", 1)}


def test_the_last_one_to_publish_has_seen_everything(finished: Storage) -> None:
    whole = build_index(finished)
    name = sample_path("5x64x96", 0)
    late = finished.read(name)
    finished.delete(name)
    snapshot = RunSnapshot(finished, interval_s=60.0)
    snapshot.open(set())
    write = Storage.write

    def and_then_the_other_commits(storage: Storage, path: str, data: bytes) -> None:
        write(storage, path, data)
        write(storage, name, late)

    finished.delete(sample_path("5x64x96", 1))  # so that there is something to publish
    with mock.patch.object(Storage, "write", and_then_the_other_commits):
        published = snapshot.close()
    assert published == read_index(finished)
    assert places(published) == places(whole) - {("5x64x96", 1)}


def test_a_row_that_another_run_has_put_back_is_read_again(finished: Storage) -> None:
    whole = read_index(finished)
    rows = whole.to_pylist()
    # As it was before the shard's failed clips were tried again.
    rows[4].update(num_ok=rows[4]["num_ok"] - 1, table_bytes=rows[4]["table_bytes"] - 7)
    publish(finished, pa.Table.from_pylist(rows, schema=whole.schema))
    snapshot = RunSnapshot(finished, interval_s=60.0)
    assert snapshot.close() == whole == read_index(finished)


def test_rows_of_deleted_sample_tables_do_not_survive(finished: Storage) -> None:
    finished.delete(sample_path("5x64x96", 3))
    assert ("5x64x96", 3) in places(read_index(finished))
    RunSnapshot(finished, interval_s=60.0).open(set())
    assert ("5x64x96", 3) not in places(read_index(finished))
    assert places(read_index(finished)) == places(build_index(finished))


def test_failed_clips_are_retried_beside_a_run_that_reads_them(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    if clean.name == "zarr":
        pytest.skip("who writes what does not depend on the format")
    cache, away = tmp_path / "cache", tmp_path / "away.mp4"
    shutil.copytree(clean, cache)
    for table in cache.glob("samples/5x64x96/00000[0-7].parquet"):
        table.unlink()
    (corpus / "v0.mp4").rename(away)
    try:
        assert run_inline("resume", cache, "--skip-changed")[0] == SOME_FAILED
    finally:
        away.rename(corpus / "v0.mp4")
    assert failed_shards(read_index(Storage(str(cache))))
    for table in cache.glob("samples/5x64x96/00002*.parquet"):
        table.unlink()
    finish(
        ("resume", cache, "--retry-failed"), ("resume", cache), ("resume", cache, "--retry-failed")
    )
    assert_same_cache(cache, clean)
    assert len(latentcache.open_cache(str(cache))) == 97
    rows = from_parquet((cache / "index.parquet").read_bytes()).to_pylist()
    assert all(row["num_ok"] == row["num_clips"] for row in rows)


def test_a_table_that_another_run_is_replacing_is_left_out(finished: Storage) -> None:
    whole = build_index(finished)
    read_sized_table = snapshots.read_sized_table
    gone = sample_path("5x64x96", 2)

    def and_the_other_deletes(storage: Storage, path: str, *args: object) -> tuple[pa.Table, int]:
        storage.delete(gone)
        return read_sized_table(storage, path, *args)  # type: ignore[arg-type]

    with mock.patch.object(snapshots, "read_sized_table", and_the_other_deletes):
        assert places(build_index(finished)) == places(whole) - {("5x64x96", 2)}
