"""PyAV: the probe, and the decoder for what decord cannot open or gets wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType

from latentcache.decoders import look
from latentcache.decoders.aspects import AspectDecoder, Container
from latentcache.decoders.complaints import Complaints
from latentcache.decoders.facts import display_size
from latentcache.decoders.frames import Frame
from latentcache.decoders.index import PacketIndex, Start, read_index
from latentcache.decoders.packets import SeekMissedError, packets_at
from latentcache.decoders.ranged import RangedPath
from latentcache.decoders.rates import rate_of
from latentcache.decoders.rgb import Turn, to_rgb, turn_of
from latentcache.decoders.streams import decode, is_early, open_video
from latentcache.decoders.windows import Windows
from latentcache.errors import ClipError

NAME = "pyav"

#: Decoders that fail at the first damaged slice where they are asked to. Of others a complaint is damage.
FAILING_DECODERS = ("h26", "hevc", "mpeg", "msmpeg4", "wmv", "vc1", "flv", "rv", "mjpeg")


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What probing finds. height and width are as shown, after rotation, in square pixels.

    frames and duration_s are the header's where the file was cut: its lost clips are planned, and fail.
    fps: see `rates.rate_of`.
    times_s: presentation times of the frames that are there.
    """

    frames: int
    duration_s: float
    fps: float
    height: int
    width: int
    times_s: npt.NDArray[np.float64]


def probe(path: str, max_pixels: int | None = None) -> VideoInfo:
    """Count the frames of a video and find its shape, without decoding more than a few."""
    if isinstance(path, RangedPath) and path.is_matroska:
        return _probe_windows(Windows(path, max_pixels))
    found = read_index(path, max_pixels)
    index, shape = look.checked(path, found, max_pixels)
    if found.suits_decord and not index.suits_decord:
        raise ClipError(
            "unreadable",
            "the decoder shows other frames than the file's packets announce. Encode it again: "
            "ffmpeg -i FILE NEW_FILE",
        )
    height, width = display_size(shape, index.facts.shown_aspect(shape))
    count = len(index.times_s)
    found_s = index.end_s - float(index.times_s[0])
    return VideoInfo(
        frames=index.num_declared,
        duration_s=found_s * index.num_declared / count,
        fps=rate_of(index.facts, count, found_s),
        height=height,
        width=width,
        times_s=index.times_s,
    )


def _probe_windows(windows: Windows) -> VideoInfo:
    """Return what is known of a file without its frames in between: `times_s` is empty."""
    height, width = display_size(windows.shape, windows.facts.shown_aspect(windows.shape))
    count, found_s = windows.num_frames, windows.end_s - windows.start_s
    return VideoInfo(
        frames=count,
        duration_s=found_s * count / count,  # as that of a file of which all frames are known
        fps=rate_of(windows.facts, count, found_s),
        height=height,
        width=width,
        times_s=np.zeros(0),
    )


class Shown(NamedTuple):
    """How a picture is shown: turned, and with pixels, as they are stored, of this width over height."""

    turn: Turn
    aspect: float


class Reader:
    """An open video; `times_s` [N] and `end_s` are its presentation times.

    `facts` has the shape of the pixels of the frame that came last.
    """

    name = NAME

    def __init__(self, path: str, index: PacketIndex, max_pixels: int | None = None) -> None:
        self._path = path
        self._index = index
        self._max_pixels = max_pixels
        self._harmless: set[str] = set()
        self._container: Container | None = None
        self.times_s, self.end_s = index.times_s, index.end_s
        self.facts, self.packets = index.facts, index.packets

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the frames [h, w, 3] at ascending `indices`, each distinct one once, turned as shown.

        Raises ClipError("corrupt") at the first frame that is damaged, or refers to one that is, and
        ClipError("size_changed") at one that is turned otherwise than those before, or whose pixels have
        another shape.
        """
        wanted: list[int] = np.unique(indices).tolist()
        self._refuse_holes(wanted)
        self.fetch(indices)
        starts = self._index.starts_for(wanted[0])
        first: Shown | None = None
        for start in starts:
            count = len(wanted)
            try:
                for frame, shown in self._from(start, wanted):
                    first = first or shown
                    if shown != first:
                        raise _geometry_changed(wanted[0], first, shown)
                    self.facts = replace(self.facts, pixel_aspect=shown.aspect)
                    wanted = wanted[1:]
                    yield frame
            except ClipError:
                if start is starts[-1] or len(wanted) < count:
                    raise
            else:
                return

    def fetch(self, indices: npt.NDArray[np.int64]) -> None:
        """Fetch what decoding these frames needs, at once, if the video is read by ranges."""
        if isinstance(self._path, RangedPath):
            start = self._index.starts_for(int(indices.min()))[0]
            self._path.source.ensure(*self._index.span(start, int(indices.max())))

    def _refuse_holes(self, wanted: list[int]) -> None:
        holes = self._index.holes
        inside = holes[(holes >= wanted[0]) & (holes < wanted[-1])]
        if len(inside):
            times_s = self.times_s[inside[0] : inside[0] + 2]
            raise ClipError(
                "corrupt", f"frames are lost between {times_s[0]:.3f} s and {times_s[1]:.3f} s"
            )

    def _from(self, start: Start, wanted: list[int]) -> Iterator[tuple[Frame, Shown]]:
        """Yield the wanted frames, decoding from `start`, found by seeking where that leads there."""
        for seek_to in self._index.seeks_for(start):
            try:
                for frame in self._decode(start, wanted, seek_to):
                    wanted = wanted[1:]
                    yield frame
            except SeekMissedError:  # what was found before is right
                continue
            return

    def _decode(
        self, start: Start, wanted: list[int], seek_to: int | None
    ) -> Iterator[tuple[Frame, Shown]]:
        position = 0
        for index, frame, aspect in self._shown(start, seek_to):
            if index > wanted[position]:
                raise ClipError("corrupt", f"frame {wanted[position]} cannot be decoded")
            if index == wanted[position]:
                yield to_rgb(frame, self.facts.crop), Shown(turn_of(frame), aspect)
                position += 1
                if position == len(wanted):
                    return
        raise ClipError("truncated", f"the stream ends before frame {wanted[position]}")

    def _shown(self, start: Start, seek_to: int | None) -> Iterator[tuple[int, Any, float]]:
        """Yield (index, frame, shape of its pixels) from `start` on; raises at the first damaged one."""
        container, stream = open_video(self._path, self._max_pixels)
        self._container = self._container or Container(self._path, stream.index)
        decoder = AspectDecoder(self._container, stream)
        count, is_first = 0, start != self._index.starts[0]  # the file's first is what FFmpeg shows
        packets = packets_at(container, stream, self._index.packets, start.row, seek_to)
        with container, Complaints() as complaints:
            for row, packet in packets:
                for frame in decoder.decode(packet):
                    if is_early(frame, start.pts):
                        continue
                    index = count if self._index.counted else self._position(frame)
                    is_cut_off = packet is None and row < len(self._index.packets)
                    if is_cut_off and index is not None and not self._is_next(index, frame):
                        raise ClipError("corrupt", f"frame {index} is damaged: parts are missing")
                    count += 1
                    if index is None:
                        continue
                    if is_first and not _stands_alone(frame):
                        raise ClipError("corrupt", f"frame {index} is no key frame")
                    is_first = False
                    if frame.is_corrupt:
                        raise ClipError("corrupt", f"frame {index} is damaged: parts are missing")
                    while complaint := complaints.first(stream.codec_context.name):
                        if self._is_damage(complaint, start, seek_to, row):
                            raise ClipError("corrupt", f"frame {index} is damaged: {complaint}")
                    yield index, frame, decoder.aspect(frame)

    def _is_damage(self, complaint: str, start: Start, seek_to: int | None, last: int) -> bool:
        """Tell whether a complaint is about a picture: then the decoder fails where it may not conceal.

        Decodes again from `start` to row `last`, once for each wording.
        """
        wording = re.sub(r"-?(0x[0-9a-f]+|\d+)", "#", complaint)
        if wording in self._harmless:
            return False
        container, stream = open_video(self._path, self._max_pixels)
        context = stream.codec_context
        if not context.name.startswith(FAILING_DECODERS):
            container.close()
            return True
        context.options = {**(context.options or {}), "err_detect": "explode"}
        with container, Complaints():
            try:
                for row, packet in packets_at(
                    container, stream, self._index.packets, start.row, seek_to
                ):
                    decode(stream, packet)
                    if row >= last:
                        break
            except ClipError:
                return True
        self._harmless.add(wording)
        return False

    def _is_next(self, index: int, frame: Any) -> bool:
        """Tell whether a frame from before a damaged packet is that of `index`: one between may be lost."""
        return not self._index.is_guess and frame.pts == self._index.pts[index]

    def _position(self, frame: Any) -> int | None:
        """Return which frame of the index this is, or None where it is none of them."""
        if frame.pts is None:
            return None
        index = int(np.searchsorted(self._index.pts, frame.pts))
        known = index < len(self._index.pts) and self._index.pts[index] == frame.pts
        return index if known else None


def _geometry_changed(index: int, before: Shown, now: Shown) -> ClipError:
    if now.turn != before.turn:
        what = f"frame {index} is not turned and mirrored as the clip's frames before it"
    else:
        what = (
            f"the pixels of frame {index} are {now.aspect:.4g} times as wide as high, and those of the "
            f"clip's frames before it {before.aspect:.4g} times"
        )
    return ClipError("size_changed", what)


def _stands_alone(frame: Any) -> bool:
    """Tell whether a frame is a key frame: containers claim it of frames that are none."""
    return bool(frame.key_frame or frame.pict_type == PictureType.I)
