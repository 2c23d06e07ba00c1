"""What a video's packets say, without decoding: its frames' times, and where decoding can start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from latentcache.decoders.complaints import Complaints
from latentcache.decoders.keyframes import is_mirrored_or_projected, starts_afresh
from latentcache.decoders.trouble import ProcessTroubleError, trouble_of
from latentcache.errors import ClipError

#: What reading packets raises; IndexError where damage announces a stream that PyAV does not know.
DEMUX_ERRORS: tuple[type[Exception], ...] = (av.FFmpegError, ValueError, IndexError)
#: decord equals PyAV bit for bit on these, but for odd sizes. It gets 10-bit video wrong and does not tell.
DECORD_PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p"})
#: In others, such as MPEG-TS and AVI, decord's seeking ends at wrong frames and does not tell.
DECORD_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
#: These keep decoding order alone: the frame rate gives the times, and counting gives the frames.
COUNTED_FORMATS = frozenset({"avi"})
#: Formats whose header says how many frames there are, so that a cut file is told from a short one.
DECLARING_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "avi"})
#: Formats whose packets say how long a frame is shown, so that a longer gap is a loss.
STEADY_FORMATS = frozenset({"mpegts", "mpeg"})
#: Formats whose header does not say how long the file is; of others, a cut file is told by that.
STREAMED_FORMATS = frozenset({"flv", "asf"})
#: What a demultiplexer says of a cut file, which `PacketIndex.num_declared` accounts for.
END_OF_FILE = re.compile(r"ended prematurely|Packet corrupt|partial file")
#: Playlists and the like, which would show other files than the one that was identified.
REFERRING_FORMATS = frozenset({"hls", "dash", "concat", "sdp", "rtsp", "imf", "webm_dash_manifest"})
#: Frames a second where a file gives neither durations nor a rate; only the last frame's end needs it.
UNKNOWN_RATE = 25.0
#: Times that span more than a week are damage, and would be sampled into millions of clips.
MAX_DURATION_S = 7 * 86400.0
#: An index spends at least so much of a file on a frame; a header that declares more frames is damaged.
MIN_FRAME_BYTES = 4


class Start(NamedTuple):
    """A packet that decoding can start at. closed: no packet after it is shown before it."""

    pts: int | None
    dts: int | None
    closed: bool


@dataclass(frozen=True, kw_only=True)
class PacketIndex:
    """The frames of a video that a decoder shows, in the order in which they are shown.

    pts, times_s: presentation times [N], ascending, in the stream's time base and in s. end_s: end of the
    last frame. counted: `pts` are not what the decoder's frames carry, which are counted instead.
    starts: in decoding order. holes: frames after which others are lost. num_declared: N; of a cut file,
    what it had when whole.
    """

    pts: npt.NDArray[np.int64]
    times_s: npt.NDArray[np.float64]
    end_s: float
    counted: bool
    suits_decord: bool
    starts: Sequence[Start]
    holes: npt.NDArray[np.int64]
    num_declared: int

    def key_frames(self) -> list[int]:
        """Return which frames decoding can start at, in the order of showing."""
        pts = np.array([start.pts for start in self.starts if start.pts is not None])
        return [int(i) for i in np.flatnonzero(np.isin(self.pts, pts))]

    def starts_for(self, frame: int) -> list[Start]:
        """Return where to start for a frame: the nearest packet that claims it can, then safer ones."""
        if self.counted:
            return [self.starts[0]]
        before = [s for s in self.starts if s.pts is not None and s.pts <= self.pts[frame]]
        closed = [s for s in before if s.closed]
        return list(dict.fromkeys([*before[-1:], *closed[-1:], self.starts[0]]))


def open_video(path: str, max_pixels: int | None = None) -> tuple[Any, Any]:
    """Return the PyAV container and its best video stream; raises ClipError."""
    try:
        container = av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {path}") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise failure(
            "unreadable", "it is no video, or its header is damaged or missing", error
        ) from error
    try:
        return container, _video_stream(container, max_pixels)
    except BaseException:
        container.close()
        raise


def _video_stream(container: Any, max_pixels: int | None) -> Any:
    if container.format.name in REFERRING_FORMATS:
        raise ClipError(
            "unreadable", f"the file is a playlist ({container.format.name}) of others, not a video"
        )
    stream = container.streams.best("video")
    if stream is None:
        raise ClipError("no_video", "the file has no video stream")
    context = stream.codec_context
    if context is None:
        raise ClipError("unreadable", "FFmpeg has no decoder for the video stream")
    check_pixels(context.height, context.width, max_pixels)
    if max_pixels is not None:  # for streams whose size changes on the way
        context.options = {"max_pixels": str(max_pixels)}
    stream.thread_type = "NONE"  # decoding processes are the parallelism
    context.thread_count = 1  # dav1d and libvpx look at this only: by default one per CPU
    return stream


def check_pixels(height: int, width: int, max_pixels: int | None) -> None:
    """Raise ClipError("too_large") where a frame has more pixels than the configuration allows."""
    if max_pixels is not None and height * width > max_pixels:
        raise ClipError(
            "too_large",
            f"a frame is {width} x {height}, and corpus.max_pixels allows {max_pixels} pixels",
        )


def failure(reason: str, what: str, error: BaseException) -> ClipError | ProcessTroubleError:
    """Return the ClipError for an error of FFmpeg's, without the file's name and the error's number.

    ProcessTroubleError where the error says nothing about the file.
    """
    if trouble := trouble_of(error):
        return trouble
    return ClipError(reason, f"{what}: {getattr(error, 'strerror', None) or error}")


@dataclass(kw_only=True)
class _Packets:
    """All packets of a stream as columns, in decoding order."""

    pts: list[int | None]
    dts: list[int | None]
    is_key: list[bool]
    is_shown: list[bool]
    duration: list[int]
    ends_within: bool = False
    num_empty: int = 0
    has_false_keys: bool = False


def read_index(path: str, max_pixels: int | None = None) -> PacketIndex:
    """Read the packets of the best video stream. Raises ClipError where there is no usable frame."""
    container, stream = open_video(path, max_pixels)
    with container, Complaints() as complaints:  # a stream's facts go when its container is closed
        packets = _read_packets(container, stream)
        if complaint := complaints.first(container.format.name, harmless=END_OF_FILE):
            raise ClipError("corrupt", f"the container is damaged: {complaint}")
        return _to_index(path, container, stream, packets)


def _to_index(path: str, container: Any, stream: Any, packets: _Packets) -> PacketIndex:
    kept = _shown(packets)
    base = float(stream.time_base)
    rate = float(stream.average_rate or stream.guessed_rate or 0) or UNKNOWN_RATE
    order = sorted(kept, key=lambda i: packets.pts[i] or 0)
    pts = np.array([packets.pts[i] for i in order], dtype=np.int64)
    times_s = pts.astype(np.float64) * base
    durations_s = np.array([packets.duration[i] for i in order]) * base
    ends_s = np.append(
        times_s[1:], times_s[-1] + (durations_s[-1] if durations_s[-1] > 0 else 1 / rate)
    )
    _check_times(float(times_s[0]), float(ends_s[-1]))
    counted = container.format.name in COUNTED_FORMATS or bool((np.diff(pts) == 0).any())
    declared = _declared(
        path, container, stream, packets, len(kept), float(ends_s[-1] - times_s[0])
    )
    is_cut = packets.ends_within or declared > len(kept)
    settled = _num_settled(packets, kept, pts, counted) if is_cut else len(kept)
    if not settled:
        raise ClipError("truncated", "the file ends within its first frames")
    starts = _starts(packets)
    return PacketIndex(
        pts=pts[:settled],
        times_s=times_s[:settled],
        end_s=float(ends_s[settled - 1]),
        counted=counted,
        suits_decord=settled == len(packets.pts)
        and not (counted or packets.has_false_keys)
        and all(start.closed for start in starts)
        and _decord_knows(path, container, stream),
        starts=starts,
        holes=_holes(packets, order, pts, container.format.name),
        num_declared=max(declared, settled),
    )


def _read_packets(container: Any, stream: Any) -> _Packets:
    packets = _Packets(pts=[], dts=[], is_key=[], is_shown=[], duration=[])
    codec = stream.codec_context.name
    try:
        for packet in container.demux(stream):
            if not packet.size:
                packets.num_empty += packet.dts is not None
                continue
            packets.ends_within = packet.is_corrupt
            packets.pts.append(packet.pts)
            packets.dts.append(packet.dts)
            packets.is_key.append(packet.is_keyframe)
            packets.is_shown.append(not packet.is_discard)
            packets.duration.append(packet.duration or 0)
            if packet.is_keyframe and not packets.has_false_keys:
                packets.has_false_keys = not starts_afresh(codec, bytes(packet))
    except DEMUX_ERRORS as error:  # what was read is kept
        if not packets.pts:
            raise failure("corrupt", "the container is damaged", error) from error
        packets.ends_within = True
    if not packets.pts:
        raise ClipError("no_video", "the video stream has no frames")
    return packets


def _shown(packets: _Packets) -> list[int]:
    """Return the packets, in decoding order, that a decoder shows: those from the first key frame on."""
    first = packets.is_key.index(True) if any(packets.is_key) else 0
    shown = [i for i in range(first, len(packets.pts)) if packets.is_shown[i]]
    untimed = sum(packets.pts[i] is None for i in shown)
    if untimed:
        raise ClipError(
            "no_timestamps",
            f"{untimed} of {len(shown)} frames have no presentation time. Put the stream into a "
            "container: ffmpeg -r RATE -i FILE -c copy FILE.mp4",
        )
    start_pts = packets.pts[first]
    if start_pts is not None:
        shown = [i for i in shown if (packets.pts[i] or 0) >= start_pts]
    if not shown:
        raise ClipError("no_video", "the video stream has no frame that is shown")
    return shown


def _check_times(start_s: float, end_s: float) -> None:
    if not end_s - start_s <= MAX_DURATION_S:
        raise ClipError(
            "corrupt",
            f"the frames' times span {end_s - start_s:.3g} s, more than a week: they are damaged",
        )


def _starts(packets: _Packets) -> tuple[Start, ...]:
    keys = [i for i, is_key in enumerate(packets.is_key) if is_key] or [0]
    missing = np.iinfo(np.int64).min
    pts = np.array([missing if p is None else p for p in packets.pts], dtype=np.int64)
    after = np.minimum.accumulate(pts[::-1])[::-1]
    before = np.maximum.accumulate(pts)
    starts = [
        Start(packets.pts[i], packets.dts[i], bool(after[i] == pts[i] == before[i])) for i in keys
    ]
    return tuple(starts)


def _decord_knows(path: str, container: Any, stream: Any) -> bool:
    context = stream.codec_context
    return (
        context.pix_fmt in DECORD_PIXEL_FORMATS
        and context.height % 2 == context.width % 2 == 0
        and container.format.name in DECORD_FORMATS
        and not is_mirrored_or_projected(path)
    )


def _num_settled(
    packets: _Packets, kept: Sequence[int], pts: npt.NDArray[np.int64], counted: bool
) -> int:
    """Return how many frames of a cut file come, in the order of showing, before the first lost one.

    A file is cut in decoding order, and a lost frame can belong before one that was read. It does not
    where that one is shown before the last packet is decoded.
    """
    last_dts = packets.dts[-1]
    if counted or last_dts is None:
        last_key = max((i for i, is_key in enumerate(packets.is_key) if is_key), default=0)
        return sum(i < last_key for i in kept)
    return int(np.searchsorted(pts, last_dts, side="left" if packets.ends_within else "right"))


def _holes(
    packets: _Packets, order: Sequence[int], pts: npt.NDArray[np.int64], container_name: str
) -> npt.NDArray[np.int64]:
    """Return after which frames others are lost, in formats that go on after a loss, or may be cut."""
    gaps = np.diff(pts)
    if container_name in STEADY_FORMATS:
        durations = np.array([packets.duration[i] for i in order[:-1]], dtype=np.int64)
        return np.flatnonzero((durations > 0) & (gaps > 1.5 * durations))
    last_dts = packets.dts[-1]
    if container_name not in STREAMED_FORMATS or last_dts is None:
        return np.zeros(0, dtype=np.int64)
    settled = max(1, int(np.searchsorted(pts, last_dts, side="right")))
    usual = gaps[: settled - 1].max(initial=0) or gaps.min(initial=1)
    return settled - 1 + np.flatnonzero(gaps[settled - 1 :] > 1.5 * usual)


def _declared(
    path: str, container: Any, stream: Any, packets: _Packets, num_shown: int, found_s: float
) -> int:
    """Return how many frames the header promises, or `num_shown`. Raises ClipError if it cannot be."""
    found = len(packets.pts) + packets.num_empty
    missing = 0
    if container.format.name in DECLARING_FORMATS:
        missing = int(stream.frames) - found
    elif container.format.name == "matroska,webm" and container.duration and _is_cut(path):
        missing = round(num_shown * (container.duration / av.time_base / found_s - 1))
    if missing * MIN_FRAME_BYTES > Path(path).stat().st_size:
        raise ClipError(
            "corrupt", f"the header declares {found + missing} frames, and the file has {found}"
        )
    return num_shown + max(0, missing)


def _is_cut(path: str) -> bool:
    """Tell whether a Matroska file ends before its segment, whose size its header gives."""
    with Path(path).open("rb") as file:
        head = file.read(1 << 12)
        size = file.seek(0, 2)
    at = head.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 12 > len(head):
        return False
    width = 9 - head[at + 4].bit_length()
    declared = int.from_bytes(head[at + 4 : at + 4 + width]) - (1 << 7 * width)
    is_known = declared != (1 << 7 * width) - 1
    return is_known and at + 4 + width + declared > size
