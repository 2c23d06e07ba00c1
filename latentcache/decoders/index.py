"""The frames of a video that a decoder shows, with their times: from its packets, and from a look."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from latentcache.decoders.complaints import Complaints
from latentcache.decoders.crops import MATROSKA, MP4, NO_CROP, Crop, crop_of
from latentcache.decoders.cuts import AVI, num_missing
from latentcache.decoders.facts import VideoFacts, facts_of
from latentcache.decoders.for_decord import decord_knows, is_as_stored
from latentcache.decoders.packets import (
    PacketTable,
    read_packets,
    read_places,
    reads_alike_again,
)
from latentcache.decoders.pauses import losses
from latentcache.decoders.pictures import Shows
from latentcache.decoders.ranged import NeedsWholeError, RangedPath, suits
from latentcache.decoders.streams import open_blindly, open_video
from latentcache.errors import ClipError

#: These keep decoding order only: counting gives the frames.
COUNTED_FORMATS = frozenset({AVI})
#: Formats whose packets say how long a frame is shown, so that a longer gap may be a loss.
STEADY_FORMATS = frozenset({"mpegts", "mpeg"})
#: Where more of the gaps than this are longer, the rate is variable, and nothing is lost: of recordings
#: that lose so much the packets say it, too. Gaps among the last ones only are those of a cut file, whose
#: last pictures are shown between others that are not there.
_MOST_LOST = 1 / 20
_LAST_GAPS = 8
#: Formats whose header says how long the file is, so that a cut one is told by that.
DECLARING_FORMATS = frozenset({MP4, MATROSKA, AVI})
#: What a demultiplexer says of a cut file, which `PacketIndex.num_declared` accounts for.
END_OF_FILE = re.compile(
    r"ended prematurely|Packet corrupt|partial file|Impossibly sized packet"  # the last of RealMedia
)
#: So near to a join of two recordings, times can be off by a frame.
_JOIN_FRAMES = 3
#: A decoder wants so many packets more, or fewer, before a picture comes out.
_DELAYED = 4
#: Frames a second where a file gives neither durations nor a rate; only the last frame's end needs it.
UNKNOWN_RATE = 25.0
#: Times that span more than a week are damage, and would be sampled into millions of clips.
MAX_DURATION_S = 7 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """A packet that decoding can start at. closed: no packet after it is shown before it."""

    row: int
    pts: int | None
    closed: bool


@dataclass(frozen=True, kw_only=True)
class PacketIndex:
    """The frames of a video that a decoder shows, in the order in which they are shown.

    pts, times_s: presentation times [N], ascending, in the stream's time base and in s. end_s: end of the
    last frame. counted: `pts` are not what the decoder's frames carry, which are counted instead.
    starts: in decoding order. holes: frames after which others are lost. num_declared: N; of a cut file,
    what it had when whole. packets: all of the stream's. is_guess: some have no times in their packets.
    has_palette: only the first packet brings the colours. is_window: it has the file's first frames, those
    of a span of time, and the end; between them frames are left out.
    """

    pts: npt.NDArray[np.int64]
    times_s: npt.NDArray[np.float64]
    end_s: float
    counted: bool
    suits_decord: bool
    starts: Sequence[Start]
    holes: npt.NDArray[np.int64]
    num_declared: int
    packets: PacketTable
    facts: VideoFacts
    is_guess: bool = False
    has_palette: bool = False
    is_window: bool = False

    def key_frames(self) -> list[int]:
        """Return which frames decoding can start at, in the order of showing."""
        pts = np.array([start.pts for start in self.starts if start.pts is not None])
        return [int(i) for i in np.flatnonzero(np.isin(self.pts, pts))]

    def starts_for(self, frame: int) -> list[Start]:
        """Return where to start for a frame: the nearest packet that claims it can, then safer ones."""
        if self.counted or self.packets.joins or self.has_palette:
            return [self.starts[0]]
        before = [s for s in self.starts if s.pts is not None and s.pts <= self.pts[frame]]
        closed = [s for s in before if s.closed]
        first = [] if self.is_window else [self.starts[0]]
        return list(dict.fromkeys([*before[-1:], *closed[-1:], *first]))

    def span(self, start: Start, frame: int) -> tuple[int, int]:
        """Return the range of bytes of the packets from a start on with which a frame comes out."""
        packets, last_pts = self.packets, self.pts[frame]
        rows = range(start.row, len(packets))
        last = max(
            (i for i in rows if (pts := packets.pts[i]) is not None and pts <= last_pts),
            default=start.row,
        )
        places = [
            (pos, pos + packets.size[i])
            for i in range(start.row, min(last + 1 + _DELAYED, len(packets)))
            if (pos := packets.pos[i]) is not None
        ]
        return min((a for a, _ in places), default=0), max((b for _, b in places), default=0)

    def seeks_for(self, start: Start) -> list[int | None]:
        """Return from which packets to look for a start, the nearest first; None: from the beginning."""
        if self.is_window:
            return [start.row or None]
        at = self.starts.index(start)
        return [*(s.row for s in self.starts[max(1, at - 2) : at + 1][::-1]), None]


def read_index(path: str, max_pixels: int | None = None) -> PacketIndex:
    """Read the packets of the best video stream. Raises ClipError where there is no usable frame.

    Raises NeedsWholeError of a RangedPath of which ranges do not tell.
    """
    container, stream = open_video(path, max_pixels)
    with container, Complaints() as complaints:  # a stream's facts go when its container is closed
        packets = _read(path, container, stream)
        if complaint := complaints.first(container.format.name, harmless=END_OF_FILE):
            raise ClipError("corrupt", f"the container is damaged: {complaint}")
        return to_index(path, container, stream, packets)


def _read(path: str, container: Any, stream: Any) -> PacketTable:
    """Return the packets; of a file that is read by ranges, what its header says of them."""
    if not isinstance(path, RangedPath):
        return read_packets(container, stream)
    if container.format.name != MP4 or not suits(
        stream.codec_context.name, stream.codec_context.extradata
    ):
        raise NeedsWholeError
    blind, same = open_blindly(path, stream.index)
    with blind:
        return read_places(blind, same)


def to_index(path: str, container: Any, stream: Any, packets: PacketTable) -> PacketIndex:
    """Return the index of packets, of all or of those that a window has. Raises what `read_index` does."""
    kept, times = _shown(packets)
    order = sorted(kept, key=times.__getitem__)
    pts = np.array([times[i] for i in order], dtype=np.int64)
    durations = np.array([_duration(packets, i) for i in order], dtype=np.int64)
    crop = crop_of(path, container, stream)
    index = build_index(stream, packets, pts, durations, _starts(packets), crop)
    found_s = index.end_s - float(index.times_s[0])
    missing = num_missing(path, container, stream, packets, len(kept), found_s)
    counted = container.format.name in COUNTED_FORMATS or bool((np.diff(pts) == 0).any())
    is_cut = packets.ends_within or missing > 0
    if is_cut and isinstance(path, RangedPath):
        raise NeedsWholeError
    settled = _num_settled(stream, packets, kept, pts, counted) if is_cut else len(kept)
    if settled < 1:
        raise ClipError("truncated", "the file ends within its first frames")
    end_s = index.end_s if settled == len(pts) else float(index.times_s[settled])
    _check_times(float(index.times_s[0]), end_s)
    return replace(
        index,
        pts=pts[:settled],
        times_s=index.times_s[:settled],
        end_s=end_s,
        counted=counted,
        is_guess=any(packets.pts[i] is None for i in kept),
        has_palette=stream.codec_context.pix_fmt == "pal8",
        suits_decord=settled == len(packets)
        and crop == NO_CROP
        and not (counted or packets.has_false_keys or packets.joins)
        and all(start.closed for start in index.starts)
        and not _lacks_reordering(stream, pts, kept, times)
        and not (index.facts.pixel_aspect != 1 and index.facts.height == index.facts.width)
        and decord_knows(path, container, stream)
        and (
            isinstance(path, RangedPath)
            or (
                reads_alike_again(container, stream, packets)
                and (container.format.name != MATROSKA or is_as_stored(container, stream, packets))
            )
        ),
        holes=_holes(path, packets, durations, pts, order, container.format.name),
        num_declared=max(len(kept) + missing, settled),
    )


def build_index(
    stream: Any,
    packets: PacketTable,
    pts: npt.NDArray[np.int64],
    durations: npt.NDArray[np.int64],
    starts: Sequence[Start],
    crop: Crop,
) -> PacketIndex:
    """Return an index of frames at ascending `pts`, to be counted. Raises ClipError of absurd times."""
    base = float(stream.time_base)
    rate = float(stream.average_rate or stream.guessed_rate or 0) or UNKNOWN_RATE
    times_s = pts.astype(np.float64) * base
    end_s = float(times_s[-1] + (durations[-1] * base if durations[-1] > 0 else 1 / rate))
    _check_times(float(times_s[0]), end_s)
    return PacketIndex(
        pts=pts,
        times_s=times_s,
        end_s=end_s,
        counted=True,
        suits_decord=False,
        starts=starts,
        holes=np.zeros(0, dtype=np.int64),
        num_declared=len(pts),
        packets=packets,
        facts=facts_of(stream, len(pts) / (end_s - float(times_s[0])), crop),
    )


def _duration(packets: PacketTable, row: int) -> int:
    """Return how long the picture that begins with a packet is shown: its second field counts."""
    following = row + 1
    if following < len(packets) and packets.shows[following] is Shows.SECOND_FIELD:
        return packets.duration[row] + packets.duration[following]
    return packets.duration[row]


def _shown(packets: PacketTable) -> tuple[list[int], dict[int, int]]:
    """Return the packets, in decoding order, that a decoder shows, and when.

    They are those from the first key frame on. Program streams have times for some packets only; the
    others get one that is a guess.
    """
    first = packets.is_key.index(True) if any(packets.is_key) else 0
    shown = [
        i
        for i in range(first, len(packets))
        if packets.shows[i] is Shows.PICTURE and not packets.is_discarded[i]
    ]
    if not shown:
        raise ClipError("no_video", "the video stream has no frame that is shown")
    times = _times(packets, shown)
    start_pts = packets.pts[first]
    if start_pts is not None:
        shown = [i for i in shown if times[i] >= start_pts]
    if not shown:
        raise ClipError("no_video", "the video stream has no frame that is shown")
    return shown, times


def _times(packets: PacketTable, shown: Sequence[int]) -> dict[int, int]:
    """Return presentation times by packet. Raises ClipError where nothing tells of them."""
    times, last = {}, packets.pts[shown[0]]
    untimed = sum(packets.pts[i] is None for i in shown)
    if last is None or any(packets.pts[i] is None and packets.duration[i] <= 0 for i in shown):
        fix = (
            "Put the stream into a container: ffmpeg -r RATE -i FILE -c copy FILE.mp4"
            if untimed == len(shown)
            else "Encode it again: ffmpeg -i FILE NEW_FILE"  # a copy has no more times than it has
        )
        raise ClipError(
            "no_timestamps", f"{untimed} of {len(shown)} frames have no presentation time. {fix}"
        )
    for i in shown:
        pts = packets.pts[i]
        last = last + packets.duration[i] if pts is None else pts
        times[i] = last
    return times


def _check_times(start_s: float, end_s: float) -> None:
    if end_s <= start_s:
        raise ClipError("corrupt", "all frames have the same time: their times are damaged")
    if not end_s - start_s <= MAX_DURATION_S:
        raise ClipError(
            "corrupt",
            f"the frames' times span {end_s - start_s:.3g} s, more than a week: they are damaged",
        )


def _starts(packets: PacketTable) -> tuple[Start, ...]:
    keys = [i for i, is_key in enumerate(packets.is_key) if is_key] or [0]
    missing = np.iinfo(np.int64).min
    pts = np.array([missing if p is None else p for p in packets.pts], dtype=np.int64)
    shown = [s is Shows.PICTURE for s in packets.shows]
    after = np.minimum.accumulate(np.where(shown, pts, np.iinfo(np.int64).max)[::-1])[::-1]
    before = np.maximum.accumulate(np.where(shown, pts, missing))
    return tuple(
        Start(row=i, pts=packets.pts[i], closed=bool(after[i] == pts[i] == before[i])) for i in keys
    )


def _lacks_reordering(
    stream: Any, pts: npt.NDArray[np.int64], kept: Sequence[int], times: Mapping[int, int]
) -> bool:
    """Tell whether a decoder reorders frames, and their times do not say so."""
    in_order = [times[i] for i in kept] == pts.tolist()
    return in_order and len(kept) > 1 and int(stream.codec_context.reorder_depth) > 0


def _num_settled(
    stream: Any,
    packets: PacketTable,
    kept: Sequence[int],
    pts: npt.NDArray[np.int64],
    counted: bool,
) -> int:
    """Return how many frames of a cut file come, in the order of showing, before the first lost one.

    A file is cut in decoding order, and a lost frame can belong before one that was read. It does not
    where that one is shown before the last packet is decoded.
    """
    last_dts = packets.dts[-1]
    if counted or last_dts is None:
        whole = len(kept) - (packets.ends_within and kept[-1] == len(packets) - 1)
        return whole - int(stream.codec_context.reorder_depth)
    return int(np.searchsorted(pts, last_dts, side="left" if packets.ends_within else "right"))


def _holes(
    path: str,
    packets: PacketTable,
    durations: npt.NDArray[np.int64],
    pts: npt.NDArray[np.int64],
    order: Sequence[int],
    container_name: str,
) -> npt.NDArray[np.int64]:
    """Return after which frames others are lost, in formats that go on after a loss, or may be cut."""
    gaps = np.diff(pts)
    if container_name in STEADY_FORMATS:
        lost = (durations[:-1] > 0) & (gaps > 1.5 * durations[:-1])
        for row in packets.joins:  # FFmpeg parses the last frames before one with what comes after
            lost &= np.abs(pts[1:] - (packets.pts[row] or 0)) > _JOIN_FRAMES * durations[:-1]
        if lost.sum() > _MOST_LOST * len(lost) and lost[:-_LAST_GAPS].any():
            return np.zeros(0, dtype=np.int64)
        frames = np.flatnonzero(lost)
        return losses(path, order, frames, gaps[frames] / durations[frames])
    last_dts = packets.dts[-1]
    if container_name in DECLARING_FORMATS or last_dts is None:
        return np.zeros(0, dtype=np.int64)
    settled = max(1, int(np.searchsorted(pts, last_dts, side="right")))
    usual = gaps[: settled - 1].max(initial=0) or gaps.min(initial=1)
    return settled - 1 + np.flatnonzero(gaps[settled - 1 :] > 1.5 * usual)
