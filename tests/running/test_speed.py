"""Speed and time left: one function of when how many clips were done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.running.speed import RECENT_S, Pace, clips_per_s, time_left


def paced(beats: list[tuple[float, int]], started_s: float = 0.0) -> Pace:
    pace = Pace(started_s)
    for at_s, done in beats:
        pace.add(at_s, done)
    return pace


def test_starting_up_is_no_part_of_the_speed() -> None:
    assert clips_per_s([paced([(60.0, 0), (70.0, 5), (80.0, 10)])]) == pytest.approx(0.5)


def test_only_the_last_minutes_count() -> None:
    beats = [(float(t), t * 10) for t in range(0, 1000, 10)]
    beats += [(1000.0 + t, 9900 + t) for t in range(0, int(RECENT_S) + 10, 10)]
    assert clips_per_s([paced(beats)]) == pytest.approx(1.0)


def test_runs_at_once_add_up() -> None:
    one, two = paced([(0.0, 0), (10.0, 10)]), paced([(0.0, 0), (10.0, 20)])
    assert clips_per_s([one, two]) == pytest.approx(3.0)


def test_there_is_no_time_left_without_a_speed_or_clips() -> None:
    assert time_left(10, 0.0) is None
    assert time_left(0, 1.0) is None
    assert time_left(10, 0.5) == 20.0


@pytest.mark.slow
@given(gaps=st.lists(st.tuples(st.floats(0.01, 400.0), st.integers(0, 3)), min_size=1, max_size=80))
def test_what_a_pace_forgets_does_not_change_the_speed(gaps: list[tuple[float, int]]) -> None:
    pace, whole = Pace(0.0), Pace(0.0)
    at_s, done = 0.0, 0
    for gap_s, clips in gaps:
        at_s, done = at_s + gap_s, done + clips
        pace.add(at_s, done)
        whole.heard_s = at_s
        whole.done.append((at_s, done))
    assert clips_per_s([pace]) == pytest.approx(clips_per_s([whole]))
    assert len(pace.done) <= len(whole.done)
