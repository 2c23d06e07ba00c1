"""PyAV: the probe, and the decoder for what decord cannot open or gets wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType

from latentcache.decoders.complaints import Complaints
from latentcache.decoders.frames import Frame
from latentcache.decoders.packets import (
    DEMUX_ERRORS,
    PacketIndex,
    Start,
    failure,
    open_video,
    read_index,
)
from latentcache.decoders.rgb import to_rgb, turned
from latentcache.errors import ClipError

NAME = "pyav"


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What probing finds. height and width are as shown, after rotation.

    frames and duration_s are the header's where the file was cut: its lost clips are planned, and fail.
    """

    frames: int
    duration_s: float
    fps: float
    height: int
    width: int


def probe(path: str, max_pixels: int | None = None) -> VideoInfo:
    """Count the frames of a video and find its shape, without decoding more than one frame."""
    index = read_index(path, max_pixels)
    height, width = _first_shape(path, index, max_pixels)
    found = len(index.times_s)
    found_s = index.end_s - float(index.times_s[0])
    return VideoInfo(
        frames=index.num_declared,
        duration_s=found_s * index.num_declared / found,
        fps=found / found_s,
        height=height,
        width=width,
    )


def _first_shape(path: str, index: PacketIndex, max_pixels: int | None) -> tuple[int, int]:
    """Return height and width of the first frame that can be decoded, damaged or not."""
    error = ClipError("no_video", "the video stream has no frame that can be decoded")
    container, stream = open_video(path, max_pixels)
    with container, Complaints():
        for packet in _packets_from(container, stream, index.starts[0]):
            try:
                frames = _decode(stream, packet)
            except ClipError as damage:  # of this packet: others may be well
                error = damage
                continue
            for frame in frames:
                height, width = turned(np.empty((frame.height, frame.width, 1)), frame).shape[:2]
                return height, width
    raise error


class _SeekMissedError(Exception):
    """Seeking went past the packet that was looked for."""


class Reader:
    """An open video; `times_s` [N] and `end_s` are its presentation times."""

    name = NAME

    def __init__(self, path: str, index: PacketIndex, max_pixels: int | None = None) -> None:
        self._path = path
        self._index = index
        self._max_pixels = max_pixels
        self.times_s, self.end_s = index.times_s, index.end_s

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the frames [h, w, 3] at ascending `indices`, each distinct one once, turned as shown.

        Raises ClipError("corrupt") at the first frame that is damaged, or refers to one that is.
        """
        wanted = np.unique(indices)
        self._refuse_holes(wanted)
        starts = self._index.starts_for(int(wanted[0]))
        has_begun = False
        for start in starts:
            try:
                for frame in self._from(start, wanted):
                    has_begun = True
                    yield frame
            except ClipError:
                if has_begun or start is starts[-1]:
                    raise
            else:
                return

    def _refuse_holes(self, wanted: npt.NDArray[np.int64]) -> None:
        holes = self._index.holes
        inside = holes[(holes >= wanted[0]) & (holes < wanted[-1])]
        if len(inside):
            times_s = self.times_s[inside[0] : inside[0] + 2]
            raise ClipError(
                "corrupt", f"frames are lost between {times_s[0]:.3f} s and {times_s[1]:.3f} s"
            )

    def _from(self, start: Start, wanted: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the wanted frames, decoding from `start`: by seeking, or by reading up to there."""
        try:
            yield from self._decode(start, wanted, seeks=start != self._index.starts[0])
        except _SeekMissedError:  # before any frame
            yield from self._decode(start, wanted, seeks=False)

    def _decode(self, start: Start, wanted: npt.NDArray[np.int64], seeks: bool) -> Iterator[Frame]:
        position = 0
        for index, frame in self._shown(start, seeks):
            if index > wanted[position]:
                raise ClipError("corrupt", f"frame {wanted[position]} cannot be decoded")
            if index == wanted[position]:
                yield to_rgb(frame)
                position += 1
                if position == len(wanted):
                    return
        raise ClipError("truncated", f"the stream ends before frame {wanted[position]}")

    def _shown(self, start: Start, seeks: bool) -> Iterator[tuple[int, Any]]:
        """Yield the frames from `start` on with their indices; raises at the first damaged one."""
        container, stream = open_video(self._path, self._max_pixels)
        count, is_first = 0, start != self._index.starts[0]  # the file's first is what FFmpeg shows
        with container, Complaints() as complaints:
            for packet in _packets_from(container, stream, start, seeks):
                for frame in _decode(stream, packet):
                    index = count if self._index.counted else self._position(frame)
                    count += 1
                    if index is None or _is_early(frame, start):
                        continue
                    if is_first and not _stands_alone(frame):
                        raise ClipError("corrupt", f"frame {index} is no key frame")
                    is_first = False
                    _check_undamaged(frame, index, complaints.first(stream.codec_context.name))
                    yield index, frame

    def _position(self, frame: Any) -> int | None:
        """Return which frame of the index this is, or None where it is none of them."""
        if frame.pts is None:
            return None
        index = int(np.searchsorted(self._index.pts, frame.pts))
        known = index < len(self._index.pts) and self._index.pts[index] == frame.pts
        return index if known else None


def _is_early(frame: Any, start: Start) -> bool:
    """Tell whether a frame is shown before the one that decoding started at: it may lack references."""
    return frame.pts is not None and start.pts is not None and frame.pts < start.pts


def _stands_alone(frame: Any) -> bool:
    """Tell whether a frame is a key frame: containers claim it of frames that are none."""
    return bool(frame.key_frame or frame.pict_type == PictureType.I)


def _check_undamaged(frame: Any, index: int, complaint: str | None) -> None:
    """Raise ClipError where the decoder concealed damage here or in a frame that this one refers to."""
    if frame.is_corrupt or complaint:
        raise ClipError("corrupt", f"frame {index} is damaged: {complaint or 'parts are missing'}")


def _packets_from(container: Any, stream: Any, start: Start, seeks: bool = False) -> Iterator[Any]:
    """Yield the packets from `start` on; raises _SeekMissedError where seeking ended after it."""
    if seeks:
        target = start.pts if start.dts is None else start.dts
        try:
            container.seek(target, stream=stream, backward=True, any_frame=False)
        except (av.FFmpegError, ValueError) as error:
            raise _SeekMissedError from error
    started = False
    try:
        for packet in container.demux(stream):
            started = started or (packet.pts, packet.dts) == (start.pts, start.dts)
            if started and packet.is_corrupt:
                yield None  # what comes next is damaged: only what is complete comes out
                return
            if started:
                yield packet
            elif seeks and (not packet.size or (packet.dts or 0) > (start.dts or 0)):
                raise _SeekMissedError
    except DEMUX_ERRORS as error:
        raise failure("corrupt", "the container is damaged", error) from error


def _decode(stream: Any, packet: Any) -> Any:
    try:
        return stream.codec_context.decode(packet)
    except (av.FFmpegError, ValueError) as error:
        raise failure("corrupt", "the video stream is damaged", error) from error
