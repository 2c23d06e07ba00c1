"""How far a cache is, from its plan, what is committed, and its runs' logs. No I/O, no clock.

`watch` reads those facts from storage; `jobs/status.py` shows the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.running import log_lines
from latentcache.running.log_lines import LogEvent, count, text
from latentcache.running.speed import clips_per_s, done_by, time_left

if TYPE_CHECKING:
    from latentcache.format.fields.snapshot import FieldCounts
    from latentcache.inspecting.behind import Behind

#: Speeds over time, in as many equal parts of the run, or fewer where there were fewer heartbeats.
NUM_SPEEDS = 30

#: A shard, as (bucket, index).
State = Literal["not started", "running", "interrupted", "finished"]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What one run has logged. Times are in seconds since the epoch, by the clock of its machine.

    how: how it ended; empty if it has not said so. num_clips: how many it set out to encode. num_retried:
    shards with failed clips that it set out to try again. done: for each heartbeat, its time and how many
    clips were done by then, committed or not.
    """

    name: str
    started_s: float
    heard_s: float
    how: str = ""
    message: str = ""
    num_clips: int = 0
    num_retried: int = 0
    workers: int = 0
    shards_in_hand: int = 0
    retries: int = 0
    workers_died: int = 0
    done: Sequence[tuple[float, int]] = ()

    @property
    def clips_done(self) -> int:
        """Clips done by the last heartbeat."""
        return self.done[-1][1] if self.done else 0

    def is_going_on(self, now_s: float) -> bool:
        """Tell whether the run has neither ended nor fallen silent."""
        return not self.how and now_s - self.heard_s < log_lines.SILENT_S


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a cache is to hold. num_shards: with rows that count. rejected: sources that gave no clip."""

    num_shards: int
    num_clips: int
    rejected: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a cache is. reasons: of the failed clips, except those that `num_unexplained` counts.

    shards_committed: those that were encoded, even if each of their clips failed. shards_given_up: those
    that failed as a whole too often, or whose clips are all copied from such ones; of them there is only a
    table of failed clips.
    speeds: clips/s in equal parts of the time from since_s to until_s, of the last run or of all active
    ones. clips_per_s: over the last minutes. left_s: at that speed; None if it is not known. silent_s:
    since a run last wrote anything; None if none ever has. fields: how far each is, and behind: how far
    behind the latents.
    """

    state: State
    planned: Planned
    shards_committed: int
    shards_in_hand: int
    shards_given_up: int
    clips_ok: int
    clips_failed: int
    stored_bytes: int
    reasons: Mapping[str, int]
    num_unexplained: int
    workers: int
    speeds: Sequence[float]
    since_s: float | None
    until_s: float | None
    clips_per_s: float
    left_s: float | None
    silent_s: float | None
    runs: Sequence[RunFacts] = field(default_factory=tuple)
    fields: Mapping[str, FieldCounts] = field(default_factory=dict)
    behind: Mapping[str, Behind] = field(default_factory=dict)


def read_run(name: str, log: Sequence[LogEvent]) -> RunFacts:
    """Return what a run's log says, from its first event on; `log` is not empty."""
    last: dict[str, LogEvent] = {event.name: event for event in log}
    begin = last.get(log_lines.RUN_STARTED, log[0])
    end = last.get(log_lines.RUN_ENDED)
    beat = last.get(log_lines.PROGRESS, log[0])
    kinds = Counter(event.name for event in log)
    beats = [event for event in log if event.name == log_lines.PROGRESS]
    return RunFacts(
        name=name,
        started_s=log[0].time_s,
        heard_s=max(event.time_s for event in log),
        how=text(end.facts, "how") if end else "",
        message=text(end.facts, "message") if end else "",
        num_clips=count(begin.facts, "num_clips"),
        num_retried=count(begin.facts, "num_retried"),
        workers=count(beat.facts, "workers"),
        shards_in_hand=count(beat.facts, "shards_in_hand"),
        retries=kinds[log_lines.SHARD_RETRIED],
        workers_died=kinds[log_lines.WORKER_DIED],
        done=[(event.time_s, count(event.facts, "clips_done")) for event in beats],
    )


def assess(
    planned: Planned,
    index: pa.Table,
    runs: Iterable[RunFacts],
    reasons: Mapping[ShardId, Mapping[str, int]],
    now_s: float,
) -> Status:
    """Return how far a cache is.

    index: INDEX_SCHEMA, a row per committed shard. reasons: of those with failed clips, as far as known.
    """
    runs = sorted(runs, key=lambda run: run.started_s)
    is_complete = index.num_rows >= planned.num_shards
    going_on = [
        run for run in runs if run.is_going_on(now_s) and (run.num_retried or not is_complete)
    ]
    timed = going_on or runs[-1:]
    clips, ok = (pc.sum(index[name]).as_py() or 0 for name in ("num_clips", "num_ok"))
    num_given_up = len(_given_up(index, reasons))
    known: Counter[str] = Counter()
    for found in reasons.values():
        known.update(found)
    speed = clips_per_s(timed) if going_on else 0.0
    left = _clips_left(planned.num_clips - clips, going_on)
    return Status(
        state=_state(is_complete, bool(index.num_rows or runs), bool(going_on)),
        planned=planned,
        shards_committed=index.num_rows - num_given_up,
        shards_in_hand=sum(run.shards_in_hand for run in going_on),
        shards_given_up=num_given_up,
        clips_ok=ok,
        clips_failed=clips - ok,
        stored_bytes=pc.sum(index["stored_bytes"]).as_py() or 0,
        reasons=dict(known.most_common()),
        num_unexplained=max(0, clips - ok - known.total()),
        workers=sum(run.workers for run in going_on),
        speeds=speeds(timed, min(NUM_SPEEDS, max((len(run.done) for run in timed), default=0))),
        since_s=min((run.started_s for run in timed), default=None),
        until_s=max((run.heard_s for run in timed), default=None),
        clips_per_s=speed,
        left_s=time_left(left, speed),
        silent_s=max(0.0, now_s - max(run.heard_s for run in runs)) if runs else None,
        runs=tuple(runs),
    )


def _given_up(index: pa.Table, reasons: Mapping[ShardId, Mapping[str, int]]) -> list[ShardId]:
    """Return the shards that failed as a whole; others may hold copies of such shards' clips."""
    empty = index.filter(pc.equal(index["num_ok"], 0)).select(["bucket", "shard"]).to_pylist()
    shards = [ShardId(row["bucket"], row["shard"]) for row in empty]
    return [shard for shard in shards if {*reasons.get(shard, ())} == {"shard_failed"}]


def _state(is_complete: bool, is_begun: bool, is_going_on: bool) -> State:
    if is_going_on:
        return "running"
    if is_complete:
        return "finished"
    return "interrupted" if is_begun else "not started"


def _clips_left(uncommitted: int, going_on: Sequence[RunFacts]) -> int:
    """Return how many clips to encode; a run that only retries failed ones gives its own number."""
    own = max((run.num_clips - run.clips_done for run in going_on), default=0)
    return uncommitted if uncommitted > 0 else max(0, own)


def speeds(runs: Sequence[RunFacts], num: int) -> list[float]:
    """Return clips/s in `num` equal parts of the time in which these runs were active."""
    if not runs:
        return []
    start, end = min(run.started_s for run in runs), max(run.heard_s for run in runs)
    if end <= start or not num:
        return []
    edges = np.linspace(start, end, num + 1)
    done = sum((done_by(run, edges) for run in runs), np.zeros(num + 1))
    return [round(float(speed), 6) for speed in np.diff(done) * num / (end - start)]
