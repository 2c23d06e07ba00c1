"""Several runs on one cache at once: one correct cache, nobody's rows lost, and the work shared."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

import latentcache
from latentcache.core.records import Shard, ShardId, ShardReport
from latentcache.format.commit import commit_failed_shard
from latentcache.format.generations import generation_path
from latentcache.format.paths import INDEX, sample_path
from latentcache.format.shards import get_format
from latentcache.format.snapshot import build_index, publish, read_index
from latentcache.format.tables import from_parquet
from latentcache.inspecting.verify import verify
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache
from latentcache.planning.to_read import failed_rows
from latentcache.running.driver import Run
from latentcache.running.events import GaveUp, Task
from latentcache.running.publisher import RunSnapshot
from latentcache.running.worker import ShardWorker
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    assert_same_cache,
    finish,
    make_corpus,
    objects_in,
    read_files,
    run_inline,
    samples_of,
    start_job,
)
from tests.tools.planned import planned_from
from tests.tools.two_runs import config_for, planned_keys, prepared_in

pytestmark = pytest.mark.usefixtures("kept_pools")

SOME_FAILED = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("two") / "corpus", 12, frames=41)


@pytest.fixture(scope="module", params=["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def clean(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A cache that one run has made, in the format of its folder's name."""
    folder = tmp_path_factory.mktemp("clean")
    cache = folder / request.param
    config = config_for(folder, corpus, cache, request.param)
    assert run_inline("precompute", config)[0] == SOME_FAILED
    return cache


def test_two_runs_started_together_make_one_cache(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, corpus, tmp_path / "cache", clean.name)
    for out in finish(("precompute", config), ("precompute", config)):
        assert "cache    97 clips ok, 0 failed, 2 sources rejected" in out
    assert_same_cache(tmp_path / "cache", clean)


@pytest.mark.long
def test_resume_joins_a_run_that_goes_on(corpus: Path, clean: Path, tmp_path: Path) -> None:
    if clean.name == "parquet":
        pytest.skip("who writes what does not depend on the format")
    cache = tmp_path / "cache"
    first = start_job("precompute", config_for(tmp_path, corpus, cache, clean.name))
    while not (cache / generation_path(1)).exists():
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


def shards_of(prepared: PlannedCache, bucket: str = "5x64x96") -> list[ShardId]:
    return [shard for shard in prepared.missing_shards() if shard.bucket == bucket]


def fail_elsewhere(prepared: PlannedCache, shard: Shard) -> None:
    """Commit a shard as a run does that could encode none of its clips."""
    manifest = prepared.manifest
    layout, shard_format = manifest.layouts()[shard.bucket.name], get_format(manifest.format)
    commit_failed_shard(
        prepared.storage, shard_format, layout, shard, "by the other", manifest.fingerprint
    )


@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_a_shard_that_another_run_committed_meanwhile_is_not_written(
    corpus: Path, tmp_path: Path, shard_format: str
) -> None:
    cache = tmp_path / "cache"
    prepared = planned_from(config_for(tmp_path, corpus, cache, shard_format))
    tasks = shards_of(prepared)[:3]
    encode_clips = ShardWorker._encode_clips
    layout = prepared.manifest.layouts()["5x64x96"]
    names = [get_format(shard_format).path(layout, 1), sample_path("5x64x96", 1)]
    seen: dict[str, bytes] = {}

    def slowly(worker: ShardWorker, shard: Shard, *args: object) -> object:
        encoded = encode_clips(worker, shard, *args)  # type: ignore[arg-type]
        if shard.index == 1:  # as if another run encoded it in that time
            fail_elsewhere(prepared, shard)
            seen.update({name: (cache / name).read_bytes() for name in names})
        return encoded

    with mock.patch.object(ShardWorker, "_encode_clips", slowly):
        run = Run(prepared, tasks)
        list(run.events())
    assert seen
    after = read_files(cache)
    assert {name: after[name] for name in seen} == seen
    assert (run.summary.shards, run.summary.shards_elsewhere) == (2, 1)
    assert run.summary.clips_failed == 0
    rows = {row["shard"]: row["num_ok"] for row in run.published.to_pylist()}
    assert rows == {0: 3, 1: 0, 2: 3}


def test_a_shard_that_fails_here_and_not_elsewhere_stays_as_it_is(
    corpus: Path, tmp_path: Path
) -> None:
    prepared = prepared_in(tmp_path, corpus)
    list(Run(prepared, prepared.missing_shards()).events())
    before = read_files(tmp_path / "cache")
    late = Run(prepared, [])
    late._record(GaveUp(task=Task(shard=ShardId("5x64x96", 0), error="boom", failed_on=(0,) * 4)))
    assert late.summary.shards_failed == 1
    assert late.summary.clips_failed == 0
    assert read_files(tmp_path / "cache") == before
    # Neither does it where the other run has come only as far as the object.
    (tmp_path / "cache" / sample_path("5x64x96", 0)).unlink()
    late._record(GaveUp(task=Task(shard=ShardId("5x64x96", 0), error="boom", failed_on=(0,) * 4)))
    assert read_files(tmp_path / "cache") == before


def report_of(finished: PlannedCache, bucket: str, shard: int) -> ShardReport:
    rows = build_index(finished.storage, finished.manifest).to_pylist()
    facts = next(r for r in rows if (r["bucket"], r["shard"]) == (bucket, shard))
    return ShardReport(**facts, num_frames=0, raw_bytes=0)


def places(table: pa.Table) -> set[tuple[str, int]]:
    return set(zip(table["bucket"].to_pylist(), table["shard"].to_pylist(), strict=True))


def snapshot_of(planned: PlannedCache, interval_s: float = 60.0) -> RunSnapshot:
    return RunSnapshot(planned.storage, planned.manifest, interval_s)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in Zarr that one run has made."""
    folder = tmp_path_factory.mktemp("whole")
    prepared = prepared_in(folder, corpus)
    list(Run(prepared, prepared.missing_shards()).events())
    return folder / "cache"


@pytest.fixture
def finished(whole: Path, corpus: Path, tmp_path: Path) -> PlannedCache:
    """A copy of it, planned."""
    shutil.copytree(whole, tmp_path / "cache")
    prepared = prepared_in(tmp_path, corpus)
    assert not prepared.missing_shards()
    return prepared


def test_what_another_run_published_stays_published(finished: PlannedCache) -> None:
    reports = [report_of(finished, "5x64x96", shard) for shard in range(2)]
    for report in reports:
        finished.storage.delete(sample_path(report.bucket, report.shard))
    one, other = (snapshot_of(finished, 0.0) for _ in range(2))
    one.open()
    other.open()
    assert not places(read_index(finished.storage)) & {("5x64x96", 0), ("5x64x96", 1)}
    for snapshot, report in zip((one, other), reports, strict=True):
        snapshot.add(report)
    assert places(read_index(finished.storage)) >= {("5x64x96", 0), ("5x64x96", 1)}


def test_the_last_one_to_publish_has_seen_everything(finished: PlannedCache) -> None:
    storage = finished.storage
    whole = build_index(storage, finished.manifest)
    name = sample_path("5x64x96", 0)
    late = storage.read(name)
    storage.delete(name)
    snapshot = snapshot_of(finished)
    snapshot.open()
    write = Storage.write

    def and_then_the_other_commits(storage: Storage, path: str, data: bytes) -> None:
        write(storage, path, data)
        write(storage, name, late)

    storage.delete(sample_path("5x64x96", 1))  # so that there is something to publish
    with mock.patch.object(Storage, "write", and_then_the_other_commits):
        published = snapshot.close()
    assert published == read_index(storage)
    assert places(published) == places(whole) - {("5x64x96", 1)}


def test_a_row_that_another_run_has_put_back_is_read_again(finished: PlannedCache) -> None:
    """A snapshot of before rows were retired, from a run that does not know of it yet."""
    before = read_index(finished.storage)
    assert repair_cache(finished.storage, {ShardId("5x64x96", 1): [0, 2]}) == 2
    now = read_index(finished.storage)
    row = next(row for row in now.to_pylist() if (row["bucket"], row["shard"]) == ("5x64x96", 1))
    assert (row["num_clips"], row["retired"]) == (1, [0, 2])
    publish(finished.storage, before)
    snapshot = snapshot_of(finished)  # of the generation before, too
    assert snapshot.close().equals(now, check_metadata=True)
    assert read_index(finished.storage).equals(now, check_metadata=True)


def test_a_run_of_before_a_step_publishes_with_it(finished: PlannedCache) -> None:
    """What a run commits of rows that were retired meanwhile does not count."""
    report = report_of(finished, "5x64x96", 1)
    snapshot = snapshot_of(finished, 0.0)
    snapshot.open()
    repair_cache(finished.storage, {ShardId("5x64x96", 1): [0]})
    now = read_index(finished.storage)
    snapshot.add(report)
    assert read_index(finished.storage).equals(now, check_metadata=True)


def test_rows_of_deleted_sample_tables_do_not_survive(finished: PlannedCache) -> None:
    storage = finished.storage
    storage.delete(sample_path("5x64x96", 3))
    assert ("5x64x96", 3) in places(read_index(storage))
    snapshot_of(finished).open()
    assert ("5x64x96", 3) not in places(read_index(storage))
    assert places(read_index(storage)) == places(build_index(storage, finished.manifest))


def remove_shards(cache: Path, numbers: range) -> None:
    """Take shards of the videos away, as if they had not been encoded yet."""
    for number in numbers:
        (cache / sample_path("5x64x96", number)).unlink()
        (cache / f"latents/5x64x96/{number:06d}.parquet").unlink()


def test_failed_clips_are_retried_beside_a_run_that_reads_them(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    if clean.name == "zarr":
        pytest.skip("who writes what does not depend on the format")
    cache, away = tmp_path / "cache", tmp_path / "away.mp4"
    shutil.copytree(clean, cache)
    remove_shards(cache, range(8))
    (corpus / "v0.mp4").rename(away)
    try:
        assert run_inline("resume", cache, "--skip-changed")[0] == SOME_FAILED
    finally:
        away.rename(corpus / "v0.mp4")
    planned = planned_from(config_for(tmp_path, corpus, cache, clean.name))
    num_failed = failed_rows(planned.storage, planned.manifest).num_rows
    assert num_failed
    remove_shards(cache, range(20, 30))
    before = objects_in(cache)
    finish(
        ("resume", cache, "--retry-failed"), ("resume", cache), ("resume", cache, "--retry-failed")
    )
    after = objects_in(cache)
    assert {name: after[name] for name in before} == before
    assert samples_of(cache) == samples_of(clean)
    assert len(latentcache.open_cache(str(cache))) == 97
    rows = from_parquet((cache / INDEX).read_bytes()).to_pylist()
    assert all(row["num_ok"] == row["num_clips"] for row in rows)
    # Two looked for failed clips, and each was planned again once.
    now = planned_from(config_for(tmp_path, corpus, cache, clean.name))
    assert len(planned_keys(now)) == 97 + num_failed
    assert not verify(Storage(str(cache))).problems
