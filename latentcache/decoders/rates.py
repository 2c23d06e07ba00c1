"""A video's rate, as a trainer that counts frames takes it: the one that the file declares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentcache.decoders.facts import VideoFacts
    from latentcache.decoders.index import PacketIndex

#: A duration is off by so many of the ticks that times are written in: the first frame's time and the last
#: one's are rounded by half a tick each, and how long the last one is shown by one.
_ROUNDED_TICKS = 2.001
#: A rate within this, relatively, of a whole number or of 1000/1001 of one is that: times are rounded.
_RATE_TOLERANCE = 1e-4


def rate_of(facts: VideoFacts, frames: int, duration_s: float) -> float:
    """Return the rate that a video declares if its frames' times agree, to within their rounding.

    Otherwise it is that of the times, see `nominal_rate`. So a Matroska file, whose times are in ms, of
    45 frames at 24 per second has 24, and not 45 / 1.874 s.
    """
    declared = facts.declared_fps
    if declared and abs(frames / declared - duration_s) <= _ROUNDED_TICKS * facts.tick_s:
        return declared
    return nominal_rate(frames / duration_s)


def nominal_rate(fps: float) -> float:
    """Return the rate that is meant by one that was found from frames' times, or written in a table."""
    for unit in (1.0, 1000 / 1001):
        whole = round(fps / unit)
        if whole and abs(fps / unit / whole - 1) < _RATE_TOLERANCE:
            return float(whole) if unit == 1 else whole * 1000 / 1001
    return fps


def with_rate(index: PacketIndex) -> PacketIndex:
    """Return an index whose facts have the rate that counting goes by, by its own frames."""
    count, duration_s = len(index.times_s), index.end_s - float(index.times_s[0])
    return replace(index, facts=replace(index.facts, fps=rate_of(index.facts, count, duration_s)))
