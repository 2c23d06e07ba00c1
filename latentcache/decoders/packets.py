"""A video's packets as a table, in decoding order, each with times of its own and what it shows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from latentcache.decoders.crops import MATROSKA
from latentcache.decoders.keyframes import starts_afresh
from latentcache.decoders.pictures import Shows, classifier
from latentcache.decoders.ranged import NeedsWholeError
from latentcache.decoders.streams import DEMUX_ERRORS, container_failure
from latentcache.decoders.trouble import (
    ProcessTroubleError,
    lacks_memory,
    may_be_the_disks,
    read_through,
)
from latentcache.errors import ClipError

#: Formats that are recorded and joined as they come, or read on behind an end: their times can restart.
JOINED_FORMATS = frozenset({"mpegts", "mpeg", "gxf", MATROSKA})
#: Pictures of one size, of which FFmpeg fills up the last one of a cut file with the one before.
DV = "dv"
#: Streams of packets of so many bytes. No length says where the last picture ends, and some decoders show
#: one that is cut as if it was whole.
TRANSPORT, _TRANSPORT_BYTES = "mpegts", (188, 192, 204)
_SILENT_DECODERS = frozenset({"hevc", "vvc"})
#: Headers of two pictures can be alike, and so can their last bytes.
_END_BYTES = 64
#: Times that jump ahead by more may be damaged ones, and those behind them return.
_JUMP_S = 1
#: Times that go back by less do not restart: they follow the order of decoding.
RESTART_S = 0.25


@dataclass(kw_only=True)
class PacketTable:
    """All packets of a stream as columns, in decoding order, empty ones left out.

    pts, dts: in the stream's time base; where times restart, they go on from the part before. ends: a
    checksum, None of packets that were not read. shows: what headers tell. ends_within: the last packet
    is cut. joins: rows at which times restarted, and by how much they are shifted from there on.
    has_false_keys: some key frames are none that decord can start at, or shows as they say.
    """

    pts: list[int | None]
    dts: list[int | None]
    size: list[int]
    pos: list[int | None]
    ends: list[int | None]
    is_key: list[bool]
    is_discarded: list[bool]
    shows: list[Shows]
    duration: list[int]
    num_empty: int = 0
    ends_within: bool = False
    joins: dict[int, int] = field(default_factory=dict)
    has_false_keys: bool = False

    def __len__(self) -> int:
        return len(self.size)

    def is_at(self, row: int, packet: Any) -> bool:
        """Tell whether a packet is the one of a row: by its bytes, their place and its flag.

        Times do not tell it: after a seek FFmpeg can give them to the tail of the packet before.
        """
        return (
            row < len(self)
            and packet.size == self.size[row]
            and packet.is_keyframe == self.is_key[row]
            and packet.pos == self.pos[row]
            and self.ends[row] in (None, _ends(packet))
        )

    def is_whole(self, row: int, packet: Any) -> bool:
        """Tell whether nothing of a packet is lost: near a join FFmpeg's flag means no more than that."""
        return not packet.is_corrupt or not self.joins.keys().isdisjoint(range(row, row + 3))

    def place(self, row: int, packet: Any) -> None:
        """Give a packet the times of its row: after a seek FFmpeg can guess others."""
        packet.pts, packet.dts = self.pts[row], self.dts[row]


def _empty() -> PacketTable:
    return PacketTable(
        pts=[], dts=[], size=[], pos=[], ends=[], is_key=[], is_discarded=[], shows=[], duration=[]
    )


def _add_place(table: PacketTable, packet: Any) -> None:
    """Add what a container says of a packet."""
    table.ends_within = packet.is_corrupt
    table.pts.append(packet.pts)
    table.dts.append(packet.dts)
    table.size.append(packet.size)
    table.pos.append(packet.pos)
    table.is_key.append(packet.is_keyframe)
    table.is_discarded.append(packet.is_discard)
    table.duration.append(packet.duration or 0)


def read_packets(container: Any, stream: Any) -> PacketTable:
    """Read all packets. Raises ClipError where there is none."""
    table = _empty()
    add = _Adder(container, stream, table)
    try:
        for packet in container.demux(stream):
            if packet.size:
                add(packet)
            else:
                table.num_empty += packet.dts is not None
    except DEMUX_ERRORS as error:  # what was read is kept
        if may_be_the_disks(error):
            read_through(container.name)
        failed = _damage(container, error)
        if not len(table) or lacks_memory(failed):
            raise failed from error
        table.ends_within = True
    if not len(table):
        raise ClipError("no_video", "the video stream has no frames")
    table.ends_within |= _is_cut(container, stream, table)
    if table.shows[-1] is Shows.NOTHING and stream.codec_context.name == "mpeg4":
        table.shows[-1] = Shows.PICTURE  # where FFmpeg repeats the one before
    return table


def reads_alike_again(container: Any, stream: Any, table: PacketTable) -> bool:
    """Tell whether the first packet of a container that was read to its end has the time that it had.

    FFmpeg shifts all times of an MP4 each time that a fragment brings a lower composition offset.
    """
    again = first_again(container, stream, table)
    return again is not None and again.pts == table.pts[0]


def first_again(container: Any, stream: Any, table: PacketTable) -> Any | None:
    """Return the first packet of a container that was read to its end; None if that cannot be read."""
    try:
        container.seek(table.dts[0] or 0, stream=stream, backward=True, any_frame=False)
        return next((packet for packet in container.demux(stream) if packet.size), None)
    except DEMUX_ERRORS:
        return None


def _is_cut(container: Any, stream: Any, table: PacketTable) -> bool:
    """Tell whether a file ends within its last picture, where neither packet nor decoder tells."""
    if container.format.name == DV:
        return (table.pos[-1] or 0) + table.size[-1] > int(container.size)
    if container.format.name == TRANSPORT and stream.codec_context.name in _SILENT_DECODERS:
        return all(container.size % num_bytes for num_bytes in _TRANSPORT_BYTES)
    return False


def read_places(container: Any, stream: Any) -> PacketTable:
    """Read where packets are, how long, and when they are shown, whatever is in them: each is a picture.

    Raises NeedsWholeError where that fails.
    """
    table = _empty()
    try:
        for packet in container.demux(stream):
            if packet.size:
                _add_place(table, packet)
            else:
                table.num_empty += packet.dts is not None
    except DEMUX_ERRORS as error:
        raise NeedsWholeError from error
    if not len(table) or table.ends_within:
        raise NeedsWholeError
    table.ends = [None] * len(table)
    table.shows = [Shows.PICTURE] * len(table)
    return table


def read_span(
    container: Any, stream: Any, first: int | None, last: int | None, margin: int
) -> PacketTable:
    """Read the packets from the key frame at or before a time on, until `margin` are shown after another.

    first, last: in the stream's time base; None: from the beginning, and as many as are in the margin.
    Raises NeedsWholeError where that fails.
    """
    table, num_after = _empty(), 0
    add = _Adder(container, stream, table)
    try:
        if first is not None:
            container.seek(first, stream=stream, backward=True, any_frame=False)
        for packet in container.demux(stream):
            if not packet.size:
                continue
            add(packet)
            if packet.pts is None:
                raise NeedsWholeError
            is_shown = table.shows[-1] is Shows.PICTURE
            num_after += is_shown and (last is None or packet.pts > last)
            if num_after >= margin:
                break
    except DEMUX_ERRORS as error:
        raise NeedsWholeError from error
    if not len(table) or table.ends_within:
        raise NeedsWholeError
    begins = table.pts[0]
    if begins is None or (first is not None and begins > first):
        raise NeedsWholeError
    return table


def joined(head: PacketTable, span: PacketTable) -> PacketTable:
    """Return a file's first packets and those of a span of its time, each once, as one table.

    Raises NeedsWholeError where times begin again.
    """
    begins = (span.pts[0], span.pos[0])
    count = next((n for n in range(len(head)) if (head.pts[n], head.pos[n]) == begins), len(head))
    columns: dict[str, Any] = {
        name: [*getattr(head, name)[:count], *getattr(span, name)]
        for name in (
            "pts", "dts", "size", "pos", "ends", "is_key", "is_discarded", "shows", "duration",
        )
    }  # fmt: skip
    has_false_keys = head.has_false_keys or span.has_false_keys
    if head.joins or span.joins:
        raise NeedsWholeError
    return PacketTable(**columns, has_false_keys=has_false_keys)


def _ends(packet: Any) -> int:
    """Return a checksum of a packet's ends: some containers give several packets one place."""
    data = memoryview(packet)
    return zlib.crc32(data[-_END_BYTES:], zlib.crc32(data[:_END_BYTES]))


class _Adder:
    """Adds packets to a table, and looks at their headers on the way."""

    def __init__(self, container: Any, stream: Any, table: PacketTable) -> None:
        context = stream.codec_context
        self._table = table
        self._codec = context.name
        self._extradata = context.extradata or b""
        self._classify = classifier(context.name, context.extradata)
        self._can_restart = container.format.name in JOINED_FORMATS
        self._guesses_dts = container.format.name == MATROSKA  # it has no decoding times
        base = float(stream.time_base) if self._can_restart else 1.0
        self._jump, self._restart = round(_JUMP_S / base), round(RESTART_S / base)
        self._offset = 0
        self._next_dts: int | None = None
        self._end_pts = -(1 << 62)
        self._before_jump: int | None = None

    def __call__(self, packet: Any) -> None:
        table, is_key = self._table, packet.is_keyframe
        self._unwrap(packet)
        _add_place(table, packet)
        table.ends.append(_ends(packet))
        table.shows.append(self._classify(packet, is_key) if self._classify else Shows.PICTURE)
        if is_key and not table.has_false_keys:
            table.has_false_keys = not starts_afresh(self._codec, bytes(packet), self._extradata)

    def _unwrap(self, packet: Any) -> None:
        """Let a recording that was joined to another go on where that one ends."""
        if not self._can_restart:
            return
        if packet.dts is None:
            packet.pts = None if packet.pts is None else packet.pts + self._offset
            return
        dts, duration = packet.dts + self._offset, packet.duration or 0
        if self._next_dts is not None:
            if dts > self._next_dts + self._jump:
                self._before_jump = self._next_dts
            elif dts < self._next_dts - max(self._restart, 1 + duration):
                dts += self._join(packet, dts)
        if self._offset:
            packet.dts = dts
            packet.pts = None if packet.pts is None else packet.pts + self._offset
        self._next_dts = dts + duration
        if packet.pts is not None:
            self._end_pts = max(self._end_pts, packet.pts + duration)

    def _join(self, packet: Any, dts: int) -> int:
        """Return by how much to shift what comes from here on, as times go back."""
        assert self._next_dts is not None
        if self._before_jump is not None and abs(dts - self._before_jump) < self._jump:
            self._end_pts = dts  # they return: those of the packet before are damaged
            return 0
        shift = self._next_dts - dts
        if self._guesses_dts and packet.pts is not None:
            shift = max(shift, self._end_pts - packet.pts - self._offset)
        self._offset += shift
        self._table.joins[len(self._table)] = self._offset
        return shift


def packets_at(
    container: Any, stream: Any, table: PacketTable, row: int, seek_to: int | None
) -> Iterator[tuple[int, Any]]:
    """Yield the packets from a row on with their rows, each with the times of the table; last: None.

    seek_to: a row from which FFmpeg is asked to go on; None: it reads from the file's beginning. Raises
    SeekMissedError where what comes after a seek is not what the table has.
    """
    if seek_to is not None:
        _seek(container, stream, table, seek_to)
    try:
        yield from _matched(container, stream, table, row, seek_to is not None)
    except DEMUX_ERRORS as error:
        raise _damage(container, error) from error


def _damage(container: Any, error: Exception) -> ClipError | ProcessTroubleError:
    return container_failure("corrupt", "the container is damaged", error, container.name)


class SeekMissedError(Exception):
    """After a seek other packets come than those that the file has in sequence."""


def _seek(container: Any, stream: Any, table: PacketTable, row: int) -> None:
    # Matroska's cues have the times of showing: by that of decoding the key frame before would be found
    by_pts = table.dts[row] is None or container.format.name == MATROSKA
    target = table.pts[row] if by_pts else table.dts[row]
    try:
        container.seek(target, stream=stream, backward=True, any_frame=False)
    except DEMUX_ERRORS as error:
        raise SeekMissedError from error


def _matched(
    container: Any, stream: Any, table: PacketTable, row: int, has_sought: bool
) -> Iterator[tuple[int, Any]]:
    at = None if has_sought else 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                if packet.dts is None:
                    break
                continue
            if at is None and table.is_at(row, packet):
                at = row
            if at is not None and has_sought and not table.is_at(at, packet):
                raise SeekMissedError
            if at is not None:
                if at >= row and not table.is_whole(at, packet):
                    yield at, None  # what comes next is damaged: only what is complete comes out
                    return
                if at >= row:
                    table.place(at, packet)
                    yield at, packet
                at += 1
            elif packet.dts is not None and packet.dts > (table.dts[row] or 0):
                raise SeekMissedError
    except DEMUX_ERRORS:
        if not table.ends_within or at != len(table):  # else it is where a cut file ends
            raise
    if at is None:
        raise SeekMissedError
    yield len(table), None
