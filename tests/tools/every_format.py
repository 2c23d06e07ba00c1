"""Every container and codec that this build of FFmpeg can write, and what FFmpeg shows of a file."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec import Codec, codecs_available
from av.codec.context import Flags
from av.format import ContainerFormat, formats_available

from latentcache.decoders import decord, pyav
from latentcache.decoders.frames import Frame
from latentcache.decoders.source import Reader, Source
from tests.tools.videos import moving_pattern, scaled

#: Of one picture each, or that need a device or another program.
NO_CONTAINERS = frozenset(
    {
        "alsa",
        "oss",
        "fbdev",
        "image2",
        "image2pipe",
        "hls",
        "dash",
        "rtp",
        "rtsp",
        "sap",
        "tee",
        "null",
    }
    | {"segment", "stream_segment,ssegment", "hds", "smoothstreaming", "whip", "video4linux2,v4l2"}
    | {"rtp_mpegts", "webm_chunk", "fifo", "srt", "uncodedframecrc", "ico", "webm_dash_manifest"}
)
#: Of no bytes, or of pictures that no container keeps.
NO_ENCODERS = frozenset({"wrapped_avframe", "vnull", "a64multi", "a64multi5"})
#: Times that go back by more do not follow the order of decoding: they restart.
RESTART_S = 0.5
SIZES = ((64, 96), (96, 128), (144, 176), (120, 160), (576, 720), (288, 352))


@dataclass(frozen=True)
class Shown:
    """What FFmpeg's decoder gives from a file's beginning: times in s [N], and frames [N, H, W, 3].

    frames: or what was kept of each.
    """

    times_s: list[float]
    frames: list[Any]
    is_damaged: bool


def encoders() -> list[str]:
    """The video encoders that run on a CPU."""
    found = []
    for name in sorted(codecs_available):
        try:
            codec = Codec(name, "w")
        except ValueError:
            continue
        if codec.type == "video" and codec.video_formats and name not in NO_ENCODERS:
            found.append(name)
    return found


def containers() -> list[str]:
    """The containers that can be written into a file."""
    found = []
    for name in sorted(formats_available):
        try:
            is_output = ContainerFormat(name, "w").is_output
        except ValueError:
            continue
        if is_output and name not in NO_CONTAINERS:
            found.append(name)
    return found


def write(path: Path, container: str, codec: str, frames: int, options: dict[str, str]) -> bool:
    """Write a video at the first size and pixel format that both take; tell whether there is one."""
    formats = [f.name for f in Codec(codec, "w").video_formats or ()]
    formats.sort(key=lambda name: name != "yuv420p")
    for size in SIZES:
        for pix_fmt in formats[:2]:
            try:
                _write(path, container, codec, frames, size, pix_fmt, options)
            except (av.FFmpegError, ValueError, OSError, IndexError):
                continue
            return True
    return False


#: Making them again for each container, codec, size and pixel format took most of the time.
_pictures = functools.lru_cache(moving_pattern)


def _write(
    path: Path, container: str, codec: str, frames: int, size: tuple[int, int], pix_fmt: str,
    options: dict[str, str],
) -> None:  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with av.open(str(path), "w", format=container) as out:
            stream = out.add_stream(codec, rate=25, options={"g": "6", "strict": "-2", **options})
            stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
            for values in _pictures(frames, *size):
                frame = av.VideoFrame.from_ndarray(values, format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))


def assert_as_ffmpeg_shows(
    path: Path, times_s: list[float] | None = None, tolerance_s: float = 1e-3
) -> str:
    """Each frame read by itself is that of FFmpeg's sequence, at its time; return the decoder's name.

    The last ones come first, so that each is sought. times_s: instead of FFmpeg's, where those restart.
    """
    expected = shown(path)
    count = len(expected.frames)
    assert pyav.probe(str(path)).frames == count
    wanted_s = expected.times_s if times_s is None else times_s
    names = []
    for without_decord in (False, True):
        with contextlib.closing(Source(str(path), "video")) as source:
            reader = source.reader(without_decord)
            np.testing.assert_allclose(reader.times_s, wanted_s, rtol=0, atol=tolerance_s)
            # where decord fails, the pipeline goes on with PyAV; what it gave before is compared
            with contextlib.suppress(*decord.Error if reader.name == decord.NAME else ()):
                _assert_frames(reader, expected.frames)
                names.append(reader.name)
    return names[0]


def _assert_frames(reader: Reader, expected: list[Frame]) -> None:
    count = len(expected)
    for index in {0: None, **dict.fromkeys(range(count - 1, -1, -3)), count // 2: None}:
        (got,) = reader.frames(np.array([index]))
        np.testing.assert_array_equal(got, expected[index], err_msg=f"frame {index}")
    for index, got in enumerate(reader.frames(np.arange(count))):
        np.testing.assert_array_equal(got, expected[index], err_msg=f"frame {index}")
    assert index == count - 1


def shown(path: Path, keep: Callable[[Frame], Any] = lambda rgb: rgb) -> Shown:
    """Decode a file as FFmpeg does, and correct presentation times as it does.

    Times are sorted: where they follow the order of decoding, FFmpeg's own correction leaves gaps, and in
    program streams it can go back by a frame. Where they restart, they go on from the part before, as
    FFmpeg's own tool lets them.
    """
    raw: list[int | None] = []
    is_damaged = False
    corrected, frames = [], []
    faults, last, following = [0, 0], [-(1 << 62)] * 2, None
    offset_s = end_s = 0.0
    for frame, rgb in _decode(path):
        times = (frame.pts, frame.dts)
        for which, value in enumerate(times):
            if value is not None:
                faults[which] += value <= last[which]
                last[which] = value
        has_pts = frame.pts is not None and (faults[0] <= faults[1] or frame.dts is None)
        time = frame.pts if has_pts else frame.dts
        time = following if time is None else time
        following = None if time is None else time + (frame.duration or 0)
        raw.append(frame.pts)
        time_s = float("nan") if time is None else float(time * frame.time_base) + offset_s
        if corrected and time_s < corrected[-1] - RESTART_S:
            offset_s += end_s - time_s
            time_s = end_s
        end_s = time_s + float((frame.duration or 0) * frame.time_base)
        corrected.append(time_s)
        frames.append(keep(rgb))
        is_damaged |= frame.is_corrupt
        base = frame.time_base
    if None not in raw and raw != sorted(raw) and not offset_s:
        corrected = [float(pts * base) for pts in sorted(raw)]
    return Shown(sorted(corrected), frames, is_damaged)


def is_whole(path: Path) -> bool:
    """Tell whether FFmpeg's decoder finds no error where it may conceal none.

    Of some errors it marks no picture: the last packet of an ASF stream has zeros behind it.
    """
    try:
        with av.open(str(path)) as container:
            context = container.streams.best("video").codec_context
            context.options = {**(context.options or {}), "err_detect": "explode"}
            for packet in container.demux(video=0):
                context.decode(packet)
    except av.FFmpegError:
        return False
    return True


def _decode(path: Path) -> Iterator[tuple[av.VideoFrame, Frame]]:
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        stream.codec_context.flags |= (
            Flags.unaligned
        )  # as FFmpeg's own tool: a crop is to the pixel
        has_frames = False
        for packet in container.demux(stream):
            if not packet.size and packet.dts is not None:
                continue
            try:
                decoded = stream.codec_context.decode(packet)
            except av.error.InvalidDataError:
                if has_frames:
                    raise
                continue  # what comes before the first key frame
            has_frames = has_frames or bool(decoded)
            for frame in decoded:
                rgb = scaled(frame) if frame.interlaced_frame else frame.to_ndarray(format="rgb24")
                yield frame, np.rot90(rgb, round(frame.rotation / 90) % 4)
