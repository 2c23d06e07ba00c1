"""PyAV: the probe, and the decoder for what decord cannot open or gets wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from latentcache.decoders.frames import Frame
from latentcache.errors import ClipError

NAME = "pyav"
av.logging.set_level(av.logging.PANIC)

#: decord equals PyAV bit for bit on these. It gets 10-bit video wrong and does not tell.
DECORD_PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p"})
#: Frames a second where a file gives neither durations nor a rate; only the last frame's end needs it.
UNKNOWN_RATE = 25.0


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What probing finds. height and width are as shown, after rotation."""

    frames: int
    duration_s: float
    fps: float
    height: int
    width: int


def open_video(path: str) -> tuple[Any, Any]:
    """Return the PyAV container and its best video stream; raises ClipError."""
    try:
        container = av.open(path)
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {path}") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError("unreadable", f"cannot be opened as a video: {_text(error)}") from error
    stream = container.streams.best("video")
    if stream is None:
        container.close()
        raise ClipError("no_video", "the file has no video stream")
    return container, stream


def suits_decord(path: str) -> bool:
    """Tell whether decord decodes this file as PyAV does, from its pixel format."""
    container, stream = open_video(path)
    with container:
        return stream.codec_context.pix_fmt in DECORD_PIXEL_FORMATS


def probe(path: str) -> VideoInfo:
    """Count the frames of a video and find its shape, without decoding more than one frame."""
    times_s, end_s = read_times(path)
    container, stream = open_video(path)
    with container:
        first = next(_decode(container, stream), None)
        if first is None:
            raise ClipError("no_video", "the video stream has no frame that can be decoded")
        shape = (first.height, first.width)
        height, width = shape[::-1] if round(first.rotation / 90) % 2 else shape
    duration_s = end_s - float(times_s[0])
    return VideoInfo(
        frames=len(times_s),
        duration_s=duration_s,
        fps=len(times_s) / duration_s,
        height=height,
        width=width,
    )


def read_times(path: str) -> tuple[npt.NDArray[np.float64], float]:
    """Return the presentation times [N] in s of all frames, ascending, and the end of the last one.

    Read from the packets' headers, without decoding. Raises ClipError("no_video") where there are none.
    """
    container, stream = open_video(path)
    with container:  # a stream's facts are gone when its container is closed
        base = float(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 0) or UNKNOWN_RATE
        pts, last_duration = _packet_times(container, stream)
    if not len(pts):
        raise ClipError("no_video", "the video stream has no frames")
    times_s = pts.astype(np.float64) * base
    return times_s, float(times_s[-1]) + (last_duration * base if last_duration else 1.0 / rate)


def _packet_times(container: Any, stream: Any) -> tuple[npt.NDArray[np.int64], int]:
    """Return the presentation times of a stream's packets in its time base, and the last duration."""
    packets: list[tuple[int, int]] = []
    try:
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.duration or 0))  # noqa: PERF401 a failing demux keeps what it read
    except (av.FFmpegError, ValueError) as error:
        if not packets:
            raise ClipError("corrupt", f"the container is damaged: {_text(error)}") from error
    packets.sort()
    return np.array([pts for pts, _ in packets], dtype=np.int64), packets[-1][1] if packets else 0


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    stream.thread_type = "NONE"  # decoding processes are the parallelism
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, ValueError) as error:
        raise ClipError("corrupt", f"the video stream is damaged: {_text(error)}") from error


class Reader:
    """An open video; `times_s` [N] and `end_s` are its presentation times."""

    name = NAME

    def __init__(self, path: str, times_s: npt.NDArray[np.float64], end_s: float) -> None:
        self._path = path
        self.times_s, self.end_s = times_s, end_s

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the frames [h, w, 3] at ascending `indices`, each distinct one once, rotated as shown."""
        container, stream = open_video(self._path)
        with container:
            wanted = np.unique(indices)
            self._seek(container, stream, float(self.times_s[wanted[0]]))
            yield from self._from_here(container, stream, wanted)

    def _seek(self, container: Any, stream: Any, time_s: float) -> None:
        target = int(time_s / float(stream.time_base))
        if target > 0 and container.format.name != "image2":
            container.seek(target, stream=stream, backward=True, any_frame=False)

    def _from_here(
        self, container: Any, stream: Any, wanted: npt.NDArray[np.int64]
    ) -> Iterator[Frame]:
        base = float(stream.time_base)
        position = 0
        for frame in _decode(container, stream):
            if frame.pts is None:
                continue
            index = int(np.searchsorted(self.times_s, frame.pts * base - base / 2))
            if index == wanted[position]:
                yield _to_rgb(frame)
                position += 1
                if position == len(wanted):
                    return
            elif index > wanted[position]:
                raise ClipError("corrupt", f"frame {wanted[position]} cannot be decoded")
        raise ClipError("truncated", f"the stream ends before frame {wanted[position]}")


def _to_rgb(frame: Any) -> Frame:
    rgb: Frame = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def _text(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
