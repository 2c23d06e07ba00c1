"""What a run logs: every event once, no secret, whole segments, and never at the run's expense."""

from __future__ import annotations

import json
import logging
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core.image_quality import psnr_quantiles
from latentcache.core.records import ShardId, ShardReport
from latentcache.errors import RunStoppedError, StorageError, UnreachableError
from latentcache.inspecting.leftovers import find_leftovers
from latentcache.inspecting.watch import LogReader, shard_workers
from latentcache.planning.planned import PlannedCache
from latentcache.running import log as log_module
from latentcache.running import log_lines
from latentcache.running.driver import Run
from latentcache.running.events import Died, GaveUp, Progress, Retried, Started, Task, worker_name
from latentcache.running.log import RunLog
from latentcache.running.log_lines import LogEvent, is_log, read_lines, segment_path
from latentcache.storage.folder import Storage
from tests.tools.caches import assert_same_cache, make_config, make_corpus
from tests.tools.planned import planned_from
from tests.tools.synthetic import write_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("logs") / "corpus", 3)


def prepare(folder: Path, corpus: Path, **sections: Mapping[str, Any]) -> PlannedCache:
    return planned_from(make_config(folder, corpus, str(folder / "cache"), **sections))


def run_of(prepared: PlannedCache) -> Run:
    return Run(prepared, prepared.missing_shards())


def logged(storage: Storage) -> list[LogEvent]:
    """The log of the only run."""
    (log,) = LogReader(storage).runs().values()
    return log


def named(log: list[LogEvent], name: str) -> list[Mapping[str, Any]]:
    return [event.facts for event in log if event.name == name]


@pytest.mark.slow
@given(st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1)), st.text(), st.text(), JSON)
def test_a_line_gives_back_what_was_logged(at: datetime, name: str, key: str, value: Any) -> None:
    if key in ("time", "event"):
        return
    time_s = (at - datetime(1970, 1, 1)) / timedelta(seconds=1)
    line = LogEvent(time_s=time_s, name=name, facts={key: value}).to_line()
    assert line.count(b"\n") == 1
    (got,) = read_lines(line)
    assert (got.name, dict(got.facts)) == (name, {key: value})
    assert abs(got.time_s - time_s) < 1e-3
    assert json.loads(line)["time"].endswith("Z")


def test_lines_that_are_none_are_passed_over() -> None:
    good = LogEvent(time_s=0.0, name="warning").to_line()
    bad = [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"event": "x"}',
        b'{"time": "yesterday", "event": "x"}',
        b'{"time": "2026-01-01T00:00:00Z", "event": 3}',
        b'{"time": 7, "event": "x"}',
        b"\xff\xfe",
        b"[" * 10_000,
    ]
    assert read_lines(b"\n".join([*bad, good])) == read_lines(good)


@pytest.mark.slow
def test_a_run_logs_what_it_did(corpus: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, corpus)
    run = run_of(prepared)
    list(run.events())
    log = logged(prepared.storage)
    begin, end = log[0], log[-1]
    assert (begin.name, end.name) == (log_lines.RUN_STARTED, log_lines.RUN_ENDED)
    assert end.facts["how"] == log_lines.FINISHED
    assert begin.facts["fingerprint"] == prepared.manifest.fingerprint
    assert begin.facts["num_clips"] == run.summary.clips_ok + run.summary.clips_failed
    assert {"python", "torch", "latentcache", "ray"} <= begin.facts["versions"].keys()
    shards = named(log, log_lines.SHARD_COMMITTED)
    assert len(shards) == run.summary.shards == begin.facts["num_shards"]
    assert sum(s["num_ok"] for s in shards) == run.summary.clips_ok
    assert sum(s["stored_bytes"] for s in shards) == run.summary.stored_bytes
    assert sum(s["encode_s"] for s in shards) == pytest.approx(run.summary.encode_s, abs=1e-3)
    worker = worker_name(socket.gethostname(), (), 0)
    assert {s["worker"] for s in shards} == {worker}
    assert [w["worker"] for w in named(log, log_lines.WORKER_STARTED)] == [worker]
    assert named(log, log_lines.SNAPSHOT_PUBLISHED)[-1]["num_shards"] <= len(shards)
    assert named(log, log_lines.PROGRESS)[-1]["clips_done"] == begin.facts["num_clips"]
    (quality,) = named(log, log_lines.QUALITY)
    assert quality["psnr_db"] == psnr_quantiles(run.summary.psnrs_db)
    assert quality["num_clips"] == len(run.summary.psnrs_db) > 0
    places = {(s["bucket"], s["shard"]): worker for s in shards}
    assert shard_workers(LogReader(prepared.storage).runs()) == places
    times = [event.time_s for event in log]
    assert times == sorted(times)


@pytest.mark.slow
def test_failed_clips_are_logged_with_their_reasons(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    prepared = prepare(tmp_path, corpus)
    (corpus / "v1.mp4").unlink()
    run = run_of(prepared)
    list(run.events())
    failed = named(logged(prepared.storage), log_lines.CLIP_FAILED)
    got = sorted((f["key"], f["reason"], f["message"]) for f in failed)
    assert got == sorted(run.summary.failures) != []


def test_every_event_of_a_runner_is_logged() -> None:
    task = Task(shard=ShardId("5x8x8", 7), failed_on=(0, 1), error="it broke")
    committed = ShardReport(
        bucket="5x8x8",
        shard=7,
        num_clips=2,
        num_ok=2,
        num_frames=10,
        stored_bytes=9,
        table_bytes=9,
        raw_bytes=9,
    )
    found = {
        log_lines.WORKER_STARTED: Started(worker=0, name="a/gpu1", gpus=("1",)),
        log_lines.WORKER_DIED: Died(name="a/gpu1", error="gone"),
        log_lines.SHARD_RETRIED: Retried(task=task),
        log_lines.SHARD_GIVEN_UP: GaveUp(task=task),
        log_lines.SHARD_COMMITTED: committed,
    }
    for name, event in found.items():
        ((got, facts),) = log_lines.describe(event)
        assert got == name
        assert "a/gpu1" in facts.values() or (facts["bucket"], facts["shard"]) == ("5x8x8", 7)
    elsewhere = ShardReport(**{**vars(committed), "committed_before": True})
    assert not list(log_lines.describe(elsewhere))


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_keeps_what_it_logged(corpus: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, corpus)
    running = run_of(prepared).events()
    while not isinstance(next(running), ShardReport):
        pass
    running.close()
    log = logged(prepared.storage)
    assert log[-1].facts == {"how": log_lines.INTERRUPTED}
    assert named(log, log_lines.SHARD_COMMITTED)


def test_a_run_that_stops_itself_says_why(corpus: Path, tmp_path: Path) -> None:
    log = RunLog(Storage(str(tmp_path)), {"key": "hunter2-hunter2"})
    with pytest.raises(RunStoppedError), log.run():
        raise RunStoppedError("no good with hunter2-hunter2")
    end = logged(Storage(str(tmp_path)))[-1]
    assert end.facts == {"how": log_lines.STOPPED, "message": "RunStoppedError: no good with ***"}


def test_of_an_error_that_nobody_foresaw_only_the_kind_is_logged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLog(Storage(str(tmp_path)), {}).run():
        raise ZeroDivisionError("who knows what this holds")
    assert logged(Storage(str(tmp_path)))[-1].facts["message"] == "ZeroDivisionError"


def test_no_secret_is_logged(tmp_path: Path) -> None:
    secrets = {"corpus": {"secret": "s3cr3t-0"}, "cache": {"client": {"password": "s3cr3t-1"}}}
    log = RunLog(Storage(str(tmp_path)), secrets)
    url = "https://user:s3cr3t-2@host/v.mp4?X-Amz-Signature=s3cr3t-3"
    with log.run(config={"encoder": {"model": url, "list": ["s3cr3t-0"]}}):
        task = Task(shard=ShardId("b", 0), error=f"cannot read {url} with s3cr3t-1")
        log.take(Retried(task=task))
        log.take(Died(name="w", error=url))
        log.take(Progress(clips_done=0, workers=1, warnings=(url,)))
    (data,) = [path.read_bytes() for path in (tmp_path / "logs").iterdir()]
    assert len(read_lines(data)) == data.count(b"\n") == 6
    assert b"s3cr3t" not in data


def test_segments_are_whole_and_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "FLUSH_INTERVAL_S", -1.0)
    monkeypatch.setattr(log_lines, "SEGMENT_BYTES", 5000)
    log = RunLog(Storage(str(tmp_path)), {})
    with log.run():
        for done in range(100):
            log.take(Progress(clips_done=done, workers=1))
    files = sorted((tmp_path / "logs").iterdir())
    assert [f"logs/{f.name}" for f in files] == [
        segment_path(log.name, n) for n in range(len(files))
    ]
    assert len(files) > 1
    assert max(f.stat().st_size for f in files) < 5500
    done = [f["clips_done"] for f in named(logged(Storage(str(tmp_path))), log_lines.PROGRESS)]
    assert done == [*range(100), 99]


def test_a_new_run_shows_its_workers_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old run writes every 15 s only."""
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    written = list[float]()
    monkeypatch.setattr(Storage, "write", lambda *_: written.append(now[0]))
    log = RunLog(Storage(str(tmp_path)), {})
    with log.run():
        log.take(Started(worker=0, name="w", gpus=()))
        for second in range(101, 400):
            now[0] = float(second)
            log.take(Progress(clips_done=0, workers=1))
    begun, first, *_ = written
    assert (begun, first) == (100.0, 102.0)
    late = [after - before for before, after in pairwise(written) if before > 200]
    assert set(late[:-1]) == {16.0}


def refuse(kind: type[StorageError], writes: list[str]) -> Any:
    write = Storage.write

    def refusing(storage: Storage, path: str, data: bytes) -> None:
        if is_log(path):
            writes.append(path)
            raise kind("403")
        write(storage, path, data)

    return refusing


@pytest.mark.slow
def test_a_log_that_cannot_be_written_fails_nothing_and_is_said_once(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(log_lines, "FLUSH_INTERVAL_S", -1.0)
    prepared, writes = prepare(tmp_path, corpus), list[str]()
    monkeypatch.setattr(Storage, "write", refuse(StorageError, writes))
    run = run_of(prepared)
    with caplog.at_level(logging.WARNING):
        list(run.events())
    assert run.summary.clips_ok == 7
    assert len(writes) > 2
    assert [r.message for r in caplog.records] == [
        "the run goes on, and its log is not written: 403"
    ]
    assert not (tmp_path / "cache/logs").exists()


def test_lines_that_a_store_has_refused_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "FLUSH_INTERVAL_S", -1.0)
    monkeypatch.setattr(log_lines, "SEGMENT_BYTES", 1000)
    storage = Storage(str(tmp_path))
    log = RunLog(storage, {})
    with log.run():
        for done in range(40):
            with monkeypatch.context() as patch:
                if 10 <= done < 30:
                    patch.setattr(Storage, "write", refuse(StorageError, []))
                log.take(Progress(clips_done=done, workers=1))
    assert len([*(tmp_path / "logs").iterdir()]) > 5  # several were full while the store refused
    done = [facts["clips_done"] for facts in named(logged(storage), log_lines.PROGRESS)]
    assert done == [*range(40), 39]


def test_of_lines_that_a_store_refuses_for_long_the_oldest_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "FLUSH_INTERVAL_S", -1.0)
    monkeypatch.setattr(log_lines, "SEGMENT_BYTES", 0)
    monkeypatch.setattr(log_module, "MAX_UNWRITTEN", 3)
    storage = Storage(str(tmp_path))
    log = RunLog(storage, {})
    with log.run(), monkeypatch.context() as patch:
        patch.setattr(Storage, "write", refuse(StorageError, []))
        for done in range(9):
            log.take(Progress(clips_done=done, workers=1))
        patch.undo()
    done = [facts["clips_done"] for facts in named(logged(storage), log_lines.PROGRESS)]
    assert done == [6, 7, 8, 8]


def test_a_run_that_ends_as_its_storage_is_gone_does_not_wait_for_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str] = []
    monkeypatch.setattr(Storage, "write", refuse(StorageError, writes))
    with pytest.raises(UnreachableError), RunLog(Storage(str(tmp_path)), {}).run():
        raise UnreachableError("down")
    assert len(writes) == 1


@pytest.mark.slow
def test_a_run_with_nothing_to_do_logs_nothing(corpus: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, corpus)
    list(run_of(prepared).events())
    before = [*(tmp_path / "cache/logs").iterdir()]
    assert len(before) == 1
    list(run_of(prepared).events())
    assert [*(tmp_path / "cache/logs").iterdir()] == before


@pytest.mark.long
@pytest.mark.slow
def test_caches_are_the_same_whatever_their_runs_logged(corpus: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        list(run_of(prepare(folder, corpus)).events())
    assert {p.name for p in (one / "cache/logs").iterdir()}.isdisjoint(
        p.name for p in (other / "cache/logs").iterdir()
    )
    assert_same_cache(one / "cache", other / "cache")


def test_logs_belong_to_the_cache(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path / "cache"))
    with RunLog(written.storage, {}).run():
        pass
    (log,) = (tmp_path / "cache/logs").iterdir()
    temporary = log.with_name(f".{log.name}.{'0' * 32}.tmp")
    temporary.write_bytes(b"half")
    (tmp_path / "cache/logs/notes.txt").write_text("mine")
    found = find_leftovers(
        written.storage.files(), written.manifest, temporary.stat().st_mtime + 7200
    )
    names = {kind: [f.path for f in getattr(found, kind)] for kind in ("temporary", "foreign")}
    assert names == {"temporary": [f"logs/{temporary.name}"], "foreign": ["logs/notes.txt"]}
    assert not found.unplanned


def test_segments_that_have_not_grown_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, reads = Storage(str(tmp_path)), Counter[str]()
    for _ in range(2):
        with RunLog(storage, {}).run():
            pass
    read_ranges = Storage.read_ranges

    def counting(self: Storage, path: str, ranges: Any) -> Any:
        reads[path] += 1
        return read_ranges(self, path, ranges)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    reader = LogReader(storage)
    first = reader.runs()
    assert reader.runs() == first
    assert len(first) == 2
    third = RunLog(storage, {})
    with third.run():
        assert reader.runs()[third.name][-1].name == log_lines.RUN_STARTED
    assert reader.runs()[third.name][-1].name == log_lines.RUN_ENDED
    assert sorted(reads.values()) == [1, 1, 2]
