"""How fast clips are done, and how long the rest will take: for the bar, the log and `status`. No clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

#: The speed that people are told is that of the last minutes.
RECENT_S = 300.0


class Timed(Protocol):
    """A run, by when it said how many of its clips were done. Times are seconds on one clock."""

    @property
    def started_s(self) -> float:
        """When it began."""
        ...

    @property
    def heard_s(self) -> float:
        """When it last said anything."""
        ...

    @property
    def done(self) -> Sequence[tuple[float, int]]:
        """Times, ascending, and how many clips were done by then, committed or not."""
        ...


class Pace:
    """A `Timed` of the run in this process; it keeps no more than the speed needs."""

    def __init__(self, started_s: float) -> None:
        self.started_s = self.heard_s = started_s
        self.done: list[tuple[float, int]] = []

    def add(self, at_s: float, num_clips: int) -> None:
        """Note how many clips are done by now."""
        self.heard_s = at_s
        if len(self.done) > 1 and self.done[-1][1] == self.done[-2][1] == num_clips:
            self.done.pop()
        self.done.append((at_s, num_clips))
        while len(self.done) > 2 and self.done[2][0] < at_s - RECENT_S:
            del self.done[1]


def clips_per_s(runs: Sequence[Timed]) -> float:
    """Return the speed of runs that go on, over RECENT_S, or since the first clip was waited for."""
    end = max(run.heard_s for run in runs)
    start = max(end - RECENT_S, min(map(_first_beat, runs)))
    if end <= start:
        return 0.0
    before, now = (sum(float(done_by(run, at)) for run in runs) for at in (start, end))
    return max(0.0, now - before) / (end - start)


def time_left(num_clips: int, speed: float) -> float | None:
    """Return the seconds that clips will take at a speed; None where there is none, or nothing is left."""
    return num_clips / speed if speed and num_clips else None


def _first_beat(run: Timed) -> float:
    """Return when the first clip may have been begun: of heartbeats without a clip the last."""
    waiting = [time_s for time_s, done in run.done if not done]
    return max(waiting, default=run.started_s)


def done_by(run: Timed, at_s: Any) -> Any:
    """Return the clips done at these times, between heartbeats as if at a constant speed."""
    times, done = zip(*[(run.started_s, 0), *run.done], strict=True)
    return np.interp(at_s, times, np.maximum.accumulate(done))
