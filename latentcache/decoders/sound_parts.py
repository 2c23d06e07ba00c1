"""Joined recordings: which of them a packet of sound belongs to, and when it is heard.

The index lets the pictures of each go on where those of the one before end. Its sound is shifted by as
much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latentcache.decoders.packets import RESTART_S, PacketTable

#: Multiplexers write the sound of a time at most so much earlier than its pictures (FFmpeg's default).
_MOST_EARLY_S = 10.0
#: Behind a join, sound that is so near to the end of the recording before may be the rest of it.
_REST_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One recording of a file, in s.

    row: its first video packet. shift_s: how much later it is played than its packets say. begins_s,
    ends_s: the decoding times that its first packet and its last one say. start_s, end_s: between which
    times its pictures are shown; without bounds before the first recording and after the last.
    """

    row: int = 0
    shift_s: Fraction = Fraction(0)
    begins_s: float = 0.0
    ends_s: float = 0.0
    start_s: float = -math.inf
    end_s: float = math.inf


def parts_of(packets: PacketTable | None, time_base: Fraction) -> list[Part]:
    """Return the recordings of a file, from the packets of its video; without them it is one."""
    if packets is None or not packets.joins:
        return [Part()]
    joins = sorted(packets.joins.items())
    rows = [0, *(row for row, _ in joins), len(packets)]
    starts = [-math.inf, *(float(_shown(packets, row) * time_base) for row, _ in joins), math.inf]
    return [
        Part(
            row=rows[i],
            shift_s=shift * time_base,
            begins_s=float((_decoded(packets, rows[i]) - shift) * time_base),
            ends_s=float((_decoded(packets, rows[i + 1] - 1) - shift) * time_base),
            start_s=starts[i],
            end_s=starts[i + 1],
        )
        for i, shift in enumerate([0, *(shift for _, shift in joins)])
    ]


def _decoded(packets: PacketTable, row: int) -> int:
    dts, pts = packets.dts[row], packets.pts[row]
    return (pts or 0) if dts is None else dts


def _shown(packets: PacketTable, row: int) -> int:
    pts = packets.pts[row]
    return _decoded(packets, row) if pts is None else pts


class Follower:
    """Follows the packets of video and of sound in the order of the file.

    Near a join the sound of either recording can come before or after its pictures. It belongs to the one
    whose pictures' times are nearer, and to no earlier one than the sound before it.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._row = -1
        #: Which parts the last packets belong to, and when the next ones are expected.
        self._seen = self._heard = 0
        self._seen_s = parts[0].begins_s
        self._next_s: float | None = None

    def see(self, packet: Any) -> None:
        """Note the next packet of video; empty ones are not counted."""
        if not packet.size:
            return
        self._row += 1
        while self._seen + 1 < len(self._parts) and self._parts[self._seen + 1].row <= self._row:
            self._seen += 1
        if packet.dts is not None:
            self._seen_s = float(packet.dts * packet.time_base)

    def place(self, packet: Any) -> Part:
        """Give the next packet of sound the times at which it is heard, and return its recording."""
        dts = packet.pts if packet.dts is None else packet.dts
        if dts is not None:
            dts_s = float(dts * packet.time_base)
            self._heard = self._part_at(dts_s)
            self._next_s = dts_s + float((packet.duration or 0) * packet.time_base)
        part = self._parts[self._heard]
        if part.shift_s:
            shift = round(part.shift_s / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        return part

    def _part_at(self, dts_s: float) -> int:
        off_seen_s, next_s = abs(dts_s - self._seen_s), self._next_s
        ends_s = self._parts[self._heard].ends_s
        if self._heard < self._seen:
            goes_on = next_s is not None and abs(dts_s - next_s) <= off_seen_s
            is_rest = goes_on and abs(dts_s - ends_s) <= max(off_seen_s, _REST_S)
            return self._heard if is_rest else self._seen
        if self._heard > self._seen or self._seen + 1 == len(self._parts):
            return self._heard
        seen, rest_s = self._parts[self._seen], ends_s - self._seen_s
        if next_s is None:  # the first of all: it may come late, too
            may_begin = rest_s < min(_MOST_EARLY_S, self._seen_s - seen.begins_s)
        else:
            may_begin = rest_s <= _MOST_EARLY_S and dts_s < next_s - RESTART_S
        off_next_s = abs(dts_s - self._parts[self._seen + 1].begins_s)
        return self._heard + (may_begin and off_next_s < off_seen_s)
