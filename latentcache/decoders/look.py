"""A look at what a decoder shows: no header tells of every packet that gives no picture, or two.

The first pictures of a file are compared with its index. Where they differ, the whole file is decoded
once, and what comes out is the index: slow, and right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latentcache.decoders.aspects import AspectDecoder, Container
from latentcache.decoders.complaints import Complaints
from latentcache.decoders.crops import NO_CROP, Crop
from latentcache.decoders.facts import VideoFacts, transfer_of
from latentcache.decoders.index import PacketIndex, build_index
from latentcache.decoders.packets import packets_at
from latentcache.decoders.ranged import NeedsWholeError, RangedPath
from latentcache.decoders.rgb import Turn, to_rgb, turn_of
from latentcache.decoders.streams import is_early, open_video
from latentcache.errors import ClipError

#: Pictures that are compared. Hidden frames and the like come every few ones, where there are any.
NUM_PICTURES = 16
#: The same of files whose headers tell all of what decord needs, which are most.
NUM_PICTURES_FOR_DECORD = 8
#: Of pictures that a decoder reorders and whose times follow the order of decoding, those that may not
#: be in their place yet when the look ends.
_REORDERED = 4
#: What no time or place depends on, and half of what decoding costs.
_FAST = {"skip_loop_filter": "all", "skip_idct": "all"}


@dataclass(kw_only=True)
class Look:
    """What came out of a decoder: pts as frames have them, and as FFmpeg corrects them.

    shapes: height and width as shown of the first picture of each turn. turns: how many are turned how.
    is_interlaced: whether a picture says that it is. transfer: that the first picture declares. aspect: of
    a pixel of the first picture. ended: by the file's end, without damage. crop: what is cut off.
    """

    pts: list[int | None] = field(default_factory=list)
    corrected: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    shapes: dict[Turn, tuple[int, int]] = field(default_factory=dict)
    turns: Counter[Turn] = field(default_factory=Counter)
    is_interlaced: bool = False
    transfer: str | None = None
    aspect: float | None = None
    ended: bool = False
    crop: Crop = NO_CROP
    clock: Clock = field(default_factory=lambda: Clock())

    def add(self, frame: Any, aspect: float) -> None:
        """Note a frame, the next in the order of showing."""
        turn = turn_of(frame)
        self.turns[turn] += 1
        if turn not in self.shapes:
            height, width = to_rgb(frame, self.crop).shape[:2]
            self.shapes[turn] = (height, width)
        self.is_interlaced = self.is_interlaced or bool(frame.interlaced_frame)
        if not self.pts:
            self.transfer, self.aspect = transfer_of(frame), aspect
        self.pts.append(frame.pts)
        duration = frame.duration or 0
        self.corrected.append(self.clock.correct(frame.pts, frame.dts, duration))
        self.durations.append(duration)

    def completed(self, facts: VideoFacts) -> VideoFacts:
        """Return facts of a header with what pictures say, which some codecs' headers do not."""
        return replace(
            facts,
            interlaced=facts.interlaced or self.is_interlaced,
            transfer=self.transfer or facts.transfer,
            pixel_aspect=self.aspect or facts.pixel_aspect,
            are_told=True,
        )


class Clock:
    """FFmpeg's best guess at presentation times: of pts and dts, the ones with fewer faults."""

    def __init__(self) -> None:
        self._faults = {"pts": 0, "dts": 0}
        self._last: dict[str, int] = {}
        self._next: int | None = None

    def correct(self, pts: int | None, dts: int | None, duration: int) -> int | None:
        """Return the time of the next frame in the order of showing; without any, it follows the last."""
        for name, value in (("pts", pts), ("dts", dts)):
            if value is not None:
                self._faults[name] += name in self._last and value <= self._last[name]
                self._last[name] = value
        has_pts = pts is not None and (dts is None or self._faults["pts"] <= self._faults["dts"])
        time = pts if has_pts else dts
        if time is None:
            time = self._next
        self._next = None if time is None else time + duration
        return time


def checked(
    path: str, index: PacketIndex, max_pixels: int | None
) -> tuple[PacketIndex, tuple[int, int]]:
    """Return an index that agrees with the decoder, and height and width of most pictures as shown.

    Raises ClipError where no picture can be decoded.
    """
    suits_decord = index.suits_decord and not isinstance(path, RangedPath)  # nobody knows of those
    count = NUM_PICTURES_FOR_DECORD if suits_decord else NUM_PICTURES
    look = look_at(path, index, max_pixels, count)
    if not look.turns:
        raise ClipError("no_video", "the video stream has no frame that can be decoded")
    if len(look.turns) > 1 and index.suits_decord:  # decord turns all alike
        if isinstance(path, RangedPath):
            raise NeedsWholeError
        index = replace(index, suits_decord=False)
    found = _reconciled(path, index, look, max_pixels)
    turn = look.turns.most_common(1)[0][0]
    facts = replace(look.completed(found.facts), is_swapped=turn.is_swapped)
    return replace(found, facts=facts), look.shapes[turn]


def with_facts(path: str, index: PacketIndex, max_pixels: int | None) -> PacketIndex:
    """Return an index that needs no check with what the first picture says, where headers do not."""
    if index.facts.are_told:
        return index
    return replace(index, facts=look_at(path, index, max_pixels, 1).completed(index.facts))


def _reconciled(path: str, index: PacketIndex, look: Look, max_pixels: int | None) -> PacketIndex:
    num, count = len(index.pts), len(look.pts)
    if index.num_declared > num:  # it was cut: of what comes after its settled frames, some is lost
        count = min(count, num)
    expected: list[int] = index.pts[:count].tolist()
    if index.is_guess:
        return _from_pictures(path, index, max_pixels)
    has_all = not look.ended or count == num
    if has_all and look.pts[:count] == expected:
        return index
    if isinstance(path, RangedPath):
        raise NeedsWholeError
    if has_all and _in_order(look, expected):
        return replace(index, counted=True, suits_decord=False)
    return _from_pictures(path, index, max_pixels)


def _in_order(look: Look, expected: list[int]) -> bool:
    """Tell whether the pictures are those of the index, whatever times the decoder gives them.

    In some files times follow the order of decoding; sorted, they are those of showing.
    """
    if look.corrected[: len(expected)] == expected:
        return True
    known = sorted(pts for pts in look.pts if pts is not None)
    settled = len(expected) if look.ended else len(expected) - _REORDERED
    return len(known) >= len(expected) and known[:settled] == expected[:settled]


def _from_pictures(path: str, index: PacketIndex, max_pixels: int | None) -> PacketIndex:
    """Decode the whole file, and return the index of the pictures that come out."""
    look = look_at(path, index, max_pixels, None)
    pts = np.array([p for p in look.corrected if p is not None], dtype=np.int64)
    if not len(pts):
        raise ClipError("no_timestamps", "the file does not say when its frames are shown")
    durations = np.array(
        [d for d, p in zip(look.durations, look.corrected, strict=True) if p is not None]
    )
    container, stream = open_video(path, max_pixels)
    with container:
        fresh = build_index(
            stream, index.packets, np.sort(pts), durations, index.starts, index.facts.crop
        )
    lost = max(0, index.num_declared - len(index.pts))
    return replace(fresh, num_declared=len(pts) + lost)


def look_at(path: str, index: PacketIndex, max_pixels: int | None, limit: int | None) -> Look:
    """Decode from the beginning, as a reader does, up to so many pictures, or to the end (None).

    Up to a limit, damage ends it: after that, nothing is known. Before the first picture it does not.
    """
    look, start = Look(crop=index.facts.crop), index.starts[0]
    container, stream = open_video(path, max_pixels)
    context = stream.codec_context
    context.options = {**(context.options or {}), **_FAST}
    decoder = AspectDecoder(Container(path, stream.index), stream)
    with container, Complaints() as complaints:
        for _, packet in packets_at(container, stream, index.packets, start.row, None):
            frames, is_damaged = _decoded(decoder, packet)
            if (
                limit is not None
                and look.pts
                and (is_damaged or complaints.first(context.name) is not None)
            ):
                return look
            for frame in frames:
                if not is_early(frame, start.pts):
                    look.add(frame, decoder.aspect(frame))
                if limit is not None and len(look.pts) >= limit:
                    return look
    look.ended = True
    return look


def _decoded(decoder: AspectDecoder, packet: Any) -> tuple[list[Any], bool]:
    """Return the frames of a packet, and whether the decoder met damage in it."""
    try:
        frames = decoder.decode(packet)
    except ClipError:
        return [], True
    return frames, any(frame.is_corrupt for frame in frames)
