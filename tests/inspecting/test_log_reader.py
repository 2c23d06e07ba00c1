"""Logs of many shards: lines that nobody asks for are not parsed, and nothing is told otherwise for it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from latentcache.core.records import ShardId, ShardReport
from latentcache.inspecting import watch
from latentcache.inspecting.watch import LogReader
from latentcache.running import log_lines
from latentcache.running.log import RunLog
from latentcache.running.log_lines import LogEvent, read_lines
from latentcache.storage.folder import Storage

BUCKET = "5x32x32"


def report(number: int, num_failed: int = 0, stored_bytes: int = 7) -> ShardReport:
    return ShardReport(
        bucket=BUCKET,
        shard=number,
        num_clips=4,
        num_ok=4 - num_failed,
        num_frames=20,
        stored_bytes=stored_bytes,
        table_bytes=9,
        raw_bytes=30,
        reasons={"corrupt": num_failed} if num_failed else {},
        worker='"event": "shard_committed"',
    )


def write_log(storage: Storage, reports: list[ShardReport], **facts: str) -> list[LogEvent]:
    """Log a run that commits some shards; returns what its segments say, parsed line for line."""
    log = RunLog(storage, {})
    with log.run(**facts):
        for each in reports:
            log.take(each)
    return read_lines(storage.read(log_lines.segment_path(log.name, 0)))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def parsed_lines(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that are parsed from now on."""
    lines: list[bytes] = []
    read_line = log_lines.read_line

    def counting(line: bytes) -> LogEvent | None:
        lines.append(line)
        return read_line(line)

    monkeypatch.setattr(watch, "read_line", counting)
    return lines


def test_runs_are_read_line_for_line_and_loud_ones_without_what_went_well(storage: Storage) -> None:
    written = write_log(storage, [report(0), report(1, num_failed=2), report(2)])
    reader = LogReader(storage)
    (loud,) = reader.loud_runs().values()
    (whole,) = reader.runs().values()
    assert whole == written
    rest = [e for e in written if e.facts.get("shard") not in (0, 2)]
    assert loud == rest
    assert len(rest) == len(written) - 2
    assert [e.facts["shard"] for e in loud if e.name == log_lines.SHARD_COMMITTED] == [1]


def test_lines_of_shards_that_lost_no_clip_are_parsed_on_demand(
    storage: Storage, parsed_lines: list[bytes]
) -> None:
    write_log(storage, [report(number) for number in range(50)])
    reader = LogReader(storage)
    reader.loud_runs()
    assert not any(log_lines.is_quiet(line) for line in parsed_lines)
    assert reader.commits([]) == {}
    found = reader.commits([ShardId(BUCKET, 49), ShardId(BUCKET, 47)])
    assert sorted(shard.number for shard in found) == [47, 49]
    assert sum(map(log_lines.is_quiet, parsed_lines)) == 3  # from the end on, and no more
    assert {facts["stored_bytes"] for facts in found.values()} == {7}
    assert reader.commits([ShardId(BUCKET, 50)]) == {}


def test_what_was_logged_last_counts_and_only_of_runs_of_latents(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (f"20260101T00000{number}Z-000000" for number in itertools.count())
    monkeypatch.setattr(log_lines, "run_name", lambda *_: next(names))
    write_log(storage, [report(0, stored_bytes=1), report(1, stored_bytes=1)])
    write_log(storage, [report(0, stored_bytes=2)])
    write_log(storage, [report(0, stored_bytes=3), report(2, stored_bytes=3)], field="umt5")
    reader = LogReader(storage)
    assert len(reader.loud_runs()) == 2
    found = reader.commits([ShardId(BUCKET, number) for number in range(3)])
    assert {shard.number: facts["stored_bytes"] for shard, facts in found.items()} == {0: 2, 1: 1}
