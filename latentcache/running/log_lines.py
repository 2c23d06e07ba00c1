"""What a run logs: a JSON object a line, in segments under the cache's `logs/`. No I/O.

Object stores cannot append, so a segment is written again, longer, until it is full; then the next one
begins. Logs are facts of the run: nothing that a reader of latents uses, and safe to remove.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.records import ShardReport
from latentcache.redaction import printable, redact
from latentcache.running.events import Died, Event, GaveUp, Left, Retried, Started

LOGS = "logs"
#: What a segment holds before the next one begins: it is written every few seconds, and read whole.
SEGMENT_BYTES = 1 << 20
#: Seconds between writes while a run goes on, at most; each one ends with a heartbeat.
FLUSH_INTERVAL_S = 15.0
#: A run that has written nothing for as long is gone: several heartbeats, or what a store that does not
#: answer may cost.
SILENT_S = 120.0
#: Messages are cut here: a segment is to hold many.
MESSAGE_CHARACTERS = 1000

RUN_STARTED, RUN_ENDED, PROGRESS = "run_started", "run_ended", "progress"
WORKER_STARTED, WORKER_DIED, WORKER_LEFT = "worker_started", "worker_died", "worker_left"
SHARD_COMMITTED, SHARD_RETRIED, SHARD_GIVEN_UP = (
    "shard_committed",
    "shard_retried",
    "shard_given_up",
)
CLIP_FAILED, SNAPSHOT_PUBLISHED, WARNING = "clip_failed", "snapshot_published", "warning"
QUALITY, KERNELS = "quality", "kernels"

#: How a run ended.
FINISHED, INTERRUPTED, STOPPED = "finished", "interrupted", "stopped"

#: Of a shard's report.
_REPORTED = (
    "worker",
    "num_clips",
    "num_ok",
    "num_frames",
    "stored_bytes",
    "table_bytes",
    "raw_bytes",
    "reasons",
)
_TIMED = ("fetch_s", "decode_s", "encode_s", "compare_s", "wait_s", "write_s")
_COMMITTED, _NO_REASONS = f'"event": "{SHARD_COMMITTED}"'.encode(), b'"reasons": {}'
_SEGMENT = re.compile(r"(\d{8}T\d{6}Z-[0-9a-f]{6})\.(\d{6,12})\.jsonl")


@dataclass(frozen=True, kw_only=True)
class LogEvent:
    """One line of a log. time_s: since the epoch; facts: plain JSON values."""

    time_s: float
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the line; times are UTC, ISO 8601."""
        at = datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="milliseconds")
        line = {"time": at.replace("+00:00", "Z"), "event": self.name, **self.facts}
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_lines(data: bytes) -> list[LogEvent]:
    """Read a segment; lines that are none of a log are passed over."""
    return [event for line in data.splitlines() if (event := read_line(line)) is not None]


def is_quiet(line: bytes) -> bool:
    """Tell, without parsing it, whether a line says that a shard was committed and no clip failed.

    Of a long run's lines nearly all do. No text in a line holds what it looks for: quotes are escaped.
    """
    return _COMMITTED in line and _NO_REASONS in line


def read_line(line: bytes) -> LogEvent | None:
    """Read a line; None if it is none of a log."""
    try:
        facts = parse_json(line)
        time_s = datetime.fromisoformat(facts.pop("time")).timestamp()
        name = facts.pop("event")
    except OTHER_SHAPE:
        return None
    return LogEvent(time_s=time_s, name=name, facts=facts) if isinstance(name, str) else None


def run_name(time_s: float, suffix: str) -> str:
    """Return the name of a run: when it started, and 6 hexadecimal digits. Names sort by time."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y%m%dT%H%M%SZ}-{suffix}"


def flush_interval(age_s: float) -> float:
    """Return the seconds between writes of a run of this age: who looks at a new run sees it soon."""
    return min(FLUSH_INTERVAL_S, max(1.0, age_s / 4))


def segment_path(run: str, number: int) -> str:
    """Path of a segment of a run's log."""
    return f"{LOGS}/{run}.{number:06d}.jsonl"


def parse_segment(name: str) -> tuple[str, int] | None:
    """Return run and number of a segment's file name; None for any other file."""
    match = _SEGMENT.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def is_log(path: str) -> bool:
    """Tell whether this is the path of a segment."""
    folder, _, name = path.rpartition("/")
    return folder == LOGS and parse_segment(name) is not None


def describe(event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and facts of what is logged of an event. Progress is not: see RunLog."""
    match event:
        case Started():
            yield WORKER_STARTED, {"worker": event.name, "gpus": list(event.gpus)}
        case Died():
            yield WORKER_DIED, {"worker": event.name, "error": event.error}
        case Left():
            facts = {"worker": event.name, "num_given_back": event.num_given_back}
            yield WORKER_LEFT, facts
        case Retried() | GaveUp():
            name = SHARD_RETRIED if isinstance(event, Retried) else SHARD_GIVEN_UP
            task = event.task
            place = {"bucket": task.shard.bucket, "shard": task.shard.number}
            yield name, {**place, "attempts": task.attempts, "error": task.error}
        case ShardReport():
            yield from _describe_shard(event)


def _describe_shard(report: ShardReport) -> Iterator[tuple[str, dict[str, Any]]]:
    if report.committed_before:
        return
    place = {"bucket": report.bucket, "shard": report.shard}
    facts = {name: getattr(report, name) for name in _REPORTED}
    times = {name: round(getattr(report, name), 6) for name in _TIMED}
    yield SHARD_COMMITTED, {**place, **facts, **times}
    for key, reason, message in report.failures:
        yield CLIP_FAILED, {**place, "key": key, "reason": reason, "message": message}


def without_secrets(value: Any, options: Mapping[str, Any]) -> Any:
    """Return a JSON value whose texts hold no secret of `options` or of a URL, and are not too long."""
    if isinstance(value, str):
        return redact(value, options)[:MESSAGE_CHARACTERS]
    if isinstance(value, Mapping):
        return {key: without_secrets(item, options) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, options) for item in value]
    return value


def field_of(log: Sequence[LogEvent]) -> str:
    """Return the field that a run encoded; empty if it encoded latents."""
    begin = next((event for event in log if event.name == RUN_STARTED), None)
    return text(begin.facts, "field") if begin is not None else ""


def count(facts: Mapping[str, Any], name: str) -> int:
    """Return a count of an event, 0 where it has none: a log may be of another version, or damaged."""
    value = facts.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def text(facts: Mapping[str, Any], name: str) -> str:
    """Return a text of an event in printable characters, empty where it has none."""
    value = facts.get(name)
    if not isinstance(value, str):
        return ""
    return printable(value)
