"""How far a cache is, from its snapshot and its logs: states told apart, speed, what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core.records import ShardId
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.inspecting.status import Planned, RunFacts, assess, read_run, speeds
from latentcache.running import log_lines
from latentcache.running.log_lines import LogEvent

START_S = 1.8e9
PLANNED = Planned(num_shards=4, num_clips=100, rejected=0)


def run_facts(*done: int, step_s: float = 10.0, **facts: Any) -> RunFacts:
    """A run whose heartbeats came every step_s and had these clips done."""
    beats = [(START_S + (n + 1) * step_s, clips) for n, clips in enumerate(done)]
    heard_s = beats[-1][0] if beats else START_S
    return RunFacts(name="r", started_s=START_S, heard_s=heard_s, done=beats, **facts)


def index_of(*shards: tuple[int, int]) -> pa.Table:
    """A snapshot of shards with so many clips, and so many of them ok."""
    rows = [
        {
            "bucket": "b",
            "shard": n,
            "num_clips": clips,
            "num_ok": ok,
            "stored_bytes": 10 * ok,
            "table_bytes": 9,
        }
        for n, (clips, ok) in enumerate(shards)
    ]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def test_states_are_told_apart() -> None:
    empty, some, whole = index_of(), index_of((25, 25)), index_of(*[(25, 25)] * 4)
    going_on, ended = run_facts(10), run_facts(10, how=log_lines.INTERRUPTED)
    soon, later = going_on.heard_s + 1, going_on.heard_s + log_lines.SILENT_S + 1

    def state(index: pa.Table, *runs: RunFacts, now_s: float = soon) -> str:
        return assess(PLANNED, index, runs, {}, now_s).state

    assert state(empty) == "not started"
    assert state(empty, going_on) == "running"
    assert state(some, going_on) == "running"
    assert state(some, going_on, now_s=later) == "interrupted"
    assert state(some, ended) == "interrupted"
    assert state(some, ended, going_on) == "running"
    assert state(some) == "interrupted"
    assert state(whole) == state(whole, ended) == "finished"
    assert state(whole, going_on) == "finished"  # it only has to say so, or was killed
    assert state(whole, run_facts(10, num_retried=1)) == "running"
    assert assess(PLANNED, some, [going_on], {}, later).silent_s == log_lines.SILENT_S + 1


def test_a_shard_is_given_up_only_if_nothing_else_is_in_it() -> None:
    """A compaction copies the clips of shards that were given up into others, beside good ones."""
    reasons = [{"shard_failed": 2}, {"shard_failed": 1}, {"shard_failed": 1, "corrupt": 1}, {}]
    found = assess(
        PLANNED,
        index_of((2, 0), (2, 1), (2, 0), (2, 0)),
        [],
        {ShardId("b", n): counts for n, counts in enumerate(reasons)},
        START_S,
    )
    assert (found.shards_committed, found.shards_given_up) == (3, 1)
    assert found.reasons == {"shard_failed": 4, "corrupt": 1}


def test_speed_and_what_is_left_follow_from_heartbeats() -> None:
    found = assess(PLANNED, index_of((25, 24)), [run_facts(0, 20, 40)], {}, START_S + 31)
    assert found.clips_per_s == pytest.approx(2.0)  # 40 clips in the 20 s after the start-up
    assert found.left_s == pytest.approx((100 - 25) / 2.0)
    assert found.num_unexplained == 1
    stopped = run_facts(0, 20, 40, how=log_lines.STOPPED)
    found = assess(PLANNED, index_of((25, 24)), [stopped], {}, START_S + 31)
    assert (found.clips_per_s, found.left_s) == (0.0, None)


def test_a_run_over_failed_clips_knows_what_is_left_of_them() -> None:
    whole = index_of(*[(25, 20)] * 4)
    found = assess(PLANNED, whole, [run_facts(0, 5, num_clips=20, num_retried=4)], {}, START_S + 21)
    assert found.left_s == pytest.approx((20 - 5) / 0.5)


def test_the_speed_is_that_of_the_last_minutes() -> None:
    run = run_facts(*[100] * 60, *range(160, 5000, 60)[:60])
    found = assess(PLANNED, index_of(), [run], {}, run.heard_s)
    assert found.clips_per_s == pytest.approx(6.0)


@pytest.mark.slow
@given(
    st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=20), min_size=1, max_size=3),
    st.integers(1, 50),
)
def test_speeds_add_up_to_what_was_done(runs: list[list[int]], num: int) -> None:
    facts = [run_facts(*np.cumsum(steps).tolist()) for steps in runs]
    found = speeds(facts, num)
    length_s = max(run.heard_s for run in facts) - START_S
    assert len(found) == num
    assert min(found) >= 0
    assert sum(found) * length_s / num == pytest.approx(
        sum(map(sum, runs)), abs=1e-4 * num * length_s
    )


def test_a_log_of_nonsense_gives_zeros() -> None:
    facts = {"num_clips": "many", "clips_done": -3, "workers": None, "how": 7, "message": ["x"]}
    names = (log_lines.RUN_STARTED, log_lines.PROGRESS, log_lines.RUN_ENDED)
    log = [LogEvent(time_s=START_S, name=name, facts=facts) for name in names]
    run = read_run("r", log)
    assert (run.num_clips, run.clips_done, run.workers, run.how, run.message) == (0, 0, 0, "", "")
    assert assess(PLANNED, index_of(), [run], {}, START_S).state == "running"
