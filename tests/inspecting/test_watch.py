"""Looks at a cache on storage: what they say, what they cost, and how `status --watch` goes on and ends."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jobs.status
from latentcache.core.records import ShardId
from latentcache.format.commit import commit_failed_shard
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import CACHE_JSON, sample_path
from latentcache.format.shards import get_format
from latentcache.format.snapshot import build_index
from latentcache.inspecting.watch import Watch
from latentcache.planning.create import repair_cache
from latentcache.running import log_lines
from latentcache.running.log_lines import LogEvent, segment_path
from latentcache.storage.folder import Storage
from tests.running.test_log import prepare, run_of
from tests.tools.caches import make_config, make_corpus, run_inline, start_job
from tests.tools.encoders import slow
from tests.tools.planned import fill_cache, plan_cache, planned_from
from tests.tools.s3 import S3, SECRET, s3_fixture, s3_server_fixture  # noqa: F401 fixtures

pytestmark = pytest.mark.usefixtures("kept_pools")

START_S = 1.8e9


def look(storage: Storage, later_s: float = 0.0) -> Any:
    return Watch(storage).look(time.time() + later_s)


def show(*args: object) -> tuple[int, str]:
    """Run the job in this process; returns its exit status and what it printed."""
    printed, argv, handler = io.StringIO(), sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["latentcache status", *map(str, args)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            return jobs.status.main(), printed.getvalue()
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_a_run_from_the_plan_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "FLUSH_INTERVAL_S", -1.0)
    corpus = make_corpus(tmp_path / "corpus", 3)
    prepared = prepare(tmp_path, corpus, cache={"shard_clips": 1})
    url = str(tmp_path / "cache")
    (corpus / "v1.mp4").unlink()
    status, printed = show(url)
    assert (status, "state    not started" in printed) == (0, True)
    run = run_of(prepared)
    running, watch = run.events(), Watch(prepared.storage)
    committed = 0
    for event in running:
        found = watch.look(time.time())
        committed = found.shards_committed
        assert found.state == ("running" if run.summary.workers else "not started"), event
        if committed >= 2:
            break
    assert found.planned.num_shards > committed
    assert "running" in show(url)[1]
    running.close()
    found = watch.look(time.time())
    assert (found.state, found.runs[-1].how) == ("interrupted", log_lines.INTERRUPTED)
    _, printed = show(url)
    assert re.search(
        rf"the last run was stopped [\d.]+ (s|min) ago\. Go on with:  latentcache resume {url}",
        printed,
    )
    list(run_of(prepared).events())
    found = watch.look(time.time())
    index = build_index(prepared.storage, prepared.manifest)
    assert found.state == "finished"
    assert found.clips_ok == sum(index["num_ok"].to_pylist())
    assert found.stored_bytes == sum(index["stored_bytes"].to_pylist())
    assert found.reasons == {"missing": found.clips_failed} != {"missing": 0}
    assert found.planned.rejected == 2
    _, printed = show(url)
    assert f"     {found.clips_failed} x missing: the file is not there" in printed
    assert "--retry-failed" in printed


@pytest.mark.slow
def test_a_killed_run_is_told_by_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 12)
    cache = tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(cache), encoder={"kind": slow.__name__})
    process = start_job("precompute", config)
    while not list(cache.glob("samples/5x64x96/*.parquet")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    storage = Storage(str(cache))
    assert look(storage).state == "running"  # it may be
    found = look(storage, later_s=log_lines.SILENT_S)
    assert found.state == "interrupted"
    assert found.shards_committed == len(build_index(storage, read_manifest(storage))) > 0
    monkeypatch.setenv(slow.ENCODE_S, "0")
    assert run_inline("resume", cache)[0] == 3
    assert look(storage).state == "finished"


def test_silence_is_said_in_words(tmp_path: Path) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    log = LogEvent(time_s=time.time() - 3600, name=log_lines.RUN_STARTED).to_line()
    path = tmp_path / "cache" / segment_path(log_lines.run_name(0, "abcdef"), 0)
    path.parent.mkdir()
    path.write_bytes(log)
    _, printed = show(prepared.storage.url)
    assert "interrupted: nothing has been written for 60.0 min. Go on with:  latentcache" in printed


@pytest.mark.slow
def test_a_look_reads_no_table_that_snapshot_and_logs_account_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    prepared = prepare(tmp_path, corpus)
    (corpus / "v1.mp4").unlink()
    list(run_of(prepared).events())
    read: list[str] = []
    read_ranges = Storage.read_ranges

    def counting(self: Storage, path: str, ranges: Any) -> Any:
        read.append(path)
        return read_ranges(self, path, ranges)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    watch = Watch(prepared.storage)
    before = watch.look(time.time())
    tables = [path for path in read if path.startswith("samples/")]
    assert tables == []
    prepared.storage.delete("index.parquet")
    watch = Watch(prepared.storage)
    assert watch.look(time.time()).clips_ok == before.clips_ok
    tables = [path for path in read if path.startswith("samples/")]
    assert tables == []
    for path in (tmp_path / "cache/logs").iterdir():
        path.unlink()
    read.clear()
    watch = Watch(prepared.storage)
    for _ in range(3):
        after = watch.look(time.time())
        assert (after.clips_ok, after.reasons) == (before.clips_ok, before.reasons)
    tables = [path for path in read if path.startswith("samples/")]
    failed = [
        row
        for row in build_index(prepared.storage, prepared.manifest).to_pylist()
        if row["num_ok"] < row["num_clips"]
    ]
    assert len(tables) == after.shards_committed + len(failed)


@pytest.mark.slow
def test_without_logs_failures_are_looked_up_as_far_as_that_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"), shard_clips=1)
    fill_cache(prepared)
    found = look(prepared.storage)
    assert (found.state, found.reasons, found.num_unexplained) == ("finished", {"corrupt": 1}, 0)
    monkeypatch.setattr("latentcache.inspecting.watch.EXPLAINED_SHARDS", 0)
    _, printed = show(prepared.storage.url)
    assert "1 x not looked up" in printed


def test_failures_of_rows_that_no_longer_count_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.tools.planned.FAILED", {0, 1, 2, 3})
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    fill_cache(prepared)
    watch = Watch(prepared.storage)
    assert watch.look(time.time()).reasons == {"corrupt": 4}
    monkeypatch.setattr("tests.tools.planned.FAILED", set())
    repair_cache(prepared.storage, {ShardId("5x64x96", 0): [1]})
    fill_cache(replace(prepared, manifest=read_manifest(prepared.storage)))
    for found in (watch.look(time.time()), look(prepared.storage)):
        assert (found.clips_failed, found.reasons, found.num_unexplained) == (3, {"corrupt": 3}, 0)


@pytest.mark.slow
def test_a_shard_that_is_retired_is_neither_planned_nor_committed(tmp_path: Path) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    fill_cache(prepared)
    before = look(prepared.storage)
    repair_cache(prepared.storage, {ShardId("5x64x96", 0): range(3)})
    found = look(prepared.storage)
    assert (found.state, found.planned) == ("interrupted", before.planned)
    assert found.shards_committed == before.shards_committed - 1
    fill_cache(replace(prepared, manifest=read_manifest(prepared.storage)))
    found = look(prepared.storage)
    assert (found.state, found.shards_committed) == ("finished", before.shards_committed)
    assert found.clips_ok == before.clips_ok


@pytest.mark.slow
def test_rows_that_cannot_be_are_not_believed(tmp_path: Path) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    fill_cache(prepared, published=False)
    true = build_index(prepared.storage, prepared.manifest)
    bad = [
        {"num_clips": 3, "num_ok": 4, "stored_bytes": 1},
        {"num_clips": 1 << 60, "num_ok": 3, "stored_bytes": 1},
        {"num_clips": 3, "num_ok": True, "stored_bytes": 1},
        {"num_clips": 3, "num_ok": 3, "stored_bytes": "x"},
        {"num_clips": 3, "num_ok": 3, "stored_bytes": 1 << 70},
        {},
    ]
    for facts in bad:
        place = {"bucket": "5x64x96", "shard": 0}
        log = LogEvent(time_s=time.time(), name=log_lines.SHARD_COMMITTED, facts={**place, **facts})
        prepared.storage.write(segment_path("20260101T000000Z-abcdef", 0), log.to_line())
        assert look(prepared.storage).clips_ok == sum(true["num_ok"].to_pylist()), facts


@pytest.mark.slow
def test_json_has_everything_and_is_one_line(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    prepared = prepare(tmp_path, corpus)
    list(run_of(prepared).events())
    status, printed = show(tmp_path / "cache", "--json", "--watch")
    assert status == 0
    (line,) = printed.splitlines()
    found = json.loads(line)
    assert found["state"] == "finished"
    assert found["shards_committed"] == found["planned"]["num_shards"]
    assert found["runs"][0]["how"] == log_lines.FINISHED


def test_watching_goes_on_until_the_cache_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    slept: list[float] = []

    def and_meanwhile(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            fill_cache(prepared)

    monkeypatch.setattr(jobs.status.time, "sleep", and_meanwhile)  # type: ignore[attr-defined]
    status, printed = show(tmp_path / "cache", "--watch", "0.5")
    assert (status, len(slept)) == (0, 2)
    assert printed.count("state    not started") == 2
    assert printed.count("state    finished") == 1
    assert "\x1b" not in printed
    assert min(slept) >= 0.5


def test_watching_waits_for_a_cache_that_is_about_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be started first; what it waits for is said when that changes, and only then."""
    cache, made = tmp_path / "cache", tmp_path / "elsewhere"
    slept: list[float] = []

    def and_meanwhile(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            fill_cache(plan_cache(tmp_path, str(made)))
            cache.mkdir()
            shutil.copy(made / CACHE_JSON, cache / CACHE_JSON)
        if len(slept) == 5:
            shutil.copytree(made, cache, dirs_exist_ok=True)

    monkeypatch.setattr(jobs.status.time, "sleep", and_meanwhile)  # type: ignore[attr-defined]
    status, printed = show(cache, "--watch", "0.5")
    assert (status, slept) == (0, [0.5] * 5)
    assert printed.count("there is no cache here") == 1
    assert printed.count("nothing is planned yet") == 1
    assert printed.count("Waiting for it; looking every 0.5 s.") == 2
    assert printed.count("state    finished") == 1


@pytest.mark.slow
def test_what_is_planned_meanwhile_is_watched_too(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", 1)
    config = make_config(tmp_path, tmp_path / "corpus", str(tmp_path / "cache"))
    first = planned_from(config).manifest
    watch = Watch(Storage(str(tmp_path / "cache")))
    assert watch.look(START_S).planned.num_clips == first.num_clips
    make_corpus(tmp_path / "corpus" / "more", 1)
    planned_from(config)
    assert watch.look(START_S).planned.num_clips == 2 * first.num_clips


@pytest.mark.parametrize("place", ["gone", "another"])
def test_watching_ends_where_the_cache_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    cache = tmp_path / "cache"
    plan_cache(tmp_path, str(cache))

    def and_meanwhile(_: float) -> None:
        shutil.rmtree(cache)
        if place == "another":
            plan_cache(tmp_path, str(cache), dtype="float32")

    monkeypatch.setattr(jobs.status.time, "sleep", and_meanwhile)  # type: ignore[attr-defined]
    status, printed = show(cache, "--watch", "0.5")
    assert status == 2, printed
    assert ("there is no cache here" if place == "gone" else "another cache is here now") in printed
    assert printed.count("state    not started") == 1


def test_watching_does_not_wait_for_a_damaged_cache_to_get_better(tmp_path: Path) -> None:
    (tmp_path / CACHE_JSON).write_text("{}")
    status, printed = show(tmp_path, "--watch")
    assert (status, "Waiting" in printed) == (2, False)


@pytest.mark.parametrize("explained", [None, 1])
def test_shards_that_were_given_up_are_not_called_committed(
    explained: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without logs, tables of shards without a good clip are read first: they may be such ones."""
    if explained is not None:
        monkeypatch.setattr("latentcache.inspecting.watch.EXPLAINED_SHARDS", explained)
    prepared = plan_cache(tmp_path, str(tmp_path / "cache"))
    *_, last = shards = prepared.missing_shards()
    shard = prepared.plan.shard(last)
    commit_failed_shard(
        prepared.storage,
        get_format(prepared.manifest.format),
        prepared.manifest.layouts()[last.bucket],
        shard,
        "the encoder broke",
        prepared.manifest.fingerprint,
    )
    fill_cache(prepared, published=False)
    found = look(prepared.storage)
    assert (found.state, found.shards_given_up) == ("finished", 1)
    assert found.shards_committed == len(shards) - 1
    assert found.reasons["shard_failed"] == len(shard.clips)
    _, printed = show(prepared.storage.url)
    assert (
        f"{len(shards) - 1} of {len(shards)} encoded and committed, 1 given up, 0 running, 0 left"
    ) in printed


def test_on_a_terminal_the_last_look_is_drawn_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen = jobs.status._Screen()
    screen.show(["a", "b"])
    screen.show(["c"])
    screen.show(["d"])
    assert capsys.readouterr().out == "a\nb\n\x1b[2F\x1b[Jc\n\x1b[1F\x1b[Jd\n"


def interrupt(_: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--watch", "0"], 2, "--watch takes a number of seconds above 0, not 0"),
        (["--watch", "nan"], 2, "above 0, not nan"),
        (["--watch"], 130, "Interrupted."),
    ],
)
def test_what_ends_a_watch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    status: int,
    message: str,
) -> None:
    plan_cache(tmp_path, str(tmp_path / "cache"))
    monkeypatch.setattr(jobs.status.time, "sleep", interrupt)  # type: ignore[attr-defined]
    assert show(tmp_path / "cache", *args)[0] == status
    assert message in show(tmp_path / "cache", *args)[1]


def test_what_is_no_cache_is_said(tmp_path: Path) -> None:
    status, printed = show(tmp_path)
    assert (status, "there is no cache here" in printed) == (2, True)


def test_on_s3_and_without_secrets(tmp_path: Path, s3: S3) -> None:
    url = f"{s3.url}/cache"
    prepared = plan_cache(tmp_path, url, storage_options=s3.options)
    options = [f"cache.storage_options.{key}={value}" for key, value in s3.options.items()]
    assert "state    not started" in show(url, *options)[1]
    half = prepared.missing_shards()[0]
    fill_cache(prepared)
    prepared.storage.delete(sample_path(*half))
    _, printed = show(url, *options)
    assert (
        "state    interrupted: some shards are committed, and there is no log of a run" in printed
    )
    assert SECRET not in printed
