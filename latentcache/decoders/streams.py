"""A video's best stream in PyAV: opened with the limits that every reader of it keeps, and decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
from av.codec.context import Flags
from av.format import formats_available
from av.stream import Disposition

from latentcache.decoders.ranged import RangedPath
from latentcache.decoders.trouble import ProcessTroubleError, has_room, lacks_memory, trouble_of
from latentcache.errors import ClipError

#: What reading packets raises; IndexError where damage announces a stream that PyAV does not know.
DEMUX_ERRORS: tuple[type[Exception], ...] = (av.FFmpegError, ValueError, IndexError)
#: Playlists and the like, which would show other files than the one that was identified.
REFERRING_FORMATS = frozenset({"hls", "dash", "concat", "sdp", "rtsp", "imf", "webm_dash_manifest"})
#: All others, as FFmpeg takes them: those above would open what they refer to before they are known.
_FORMATS = ",".join(
    sorted({name for names in formats_available for name in names.split(",")} - REFERRING_FORMATS)
)
#: What reading a container takes at most: some pictures, and FFmpeg's tables, which have some 60 bytes for
#: each sample. That of a file of a day is less than the last of these.
_CONTAINER_BYTES = 1 << 27
_BYTES_PER_BYTE = 64
_MOST_CONTAINER_BYTES = 1 << 30
#: Covers and previews, which containers keep in streams of their own.
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


def open_any(path: str, options: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Return the PyAV container of a file that refers to no others; raises ClipError."""
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, **options}
        file = path.open() if isinstance(path, RangedPath) else path
        return av.open(file, options=options, metadata_errors="replace")
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {path}") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        what = "it is no video, or a playlist of others, or its header is damaged or missing"
        raise container_failure("unreadable", what, error, path) from error


def open_video(path: str, max_pixels: int | None = None) -> tuple[Any, Any]:
    """Return the PyAV container and its best video stream; raises ClipError."""
    container = open_any(path)
    try:
        return container, _video_stream(container, max_pixels)
    except BaseException:
        container.close()
        raise


def open_blindly(path: RangedPath, index: int) -> tuple[Any, Any]:
    """Return the container and one stream of an MP4 that has been opened before, for its packets' places.

    What is in packets is neither fetched nor looked at.
    """
    options = {"protocol_whitelist": "file", "fflags": "noparse", "probesize": "32"}
    container = av.open(
        path.open(blind=True), format="mov", options=options, metadata_errors="replace"
    )
    return container, container.streams[index]


def _video_stream(container: Any, max_pixels: int | None) -> Any:
    if container.format.name in REFERRING_FORMATS:
        raise ClipError(
            "unreadable", f"the file is a playlist ({container.format.name}) of others, not a video"
        )
    stream = best_video(container)
    context = stream.codec_context
    if context is None:
        raise ClipError("unreadable", "FFmpeg has no decoder for the video stream")
    check_pixels(context.height, context.width, max_pixels)
    if max_pixels is not None:  # for streams whose size changes on the way
        context.options = {**(context.options or {}), "max_pixels": str(max_pixels)}
    stream.thread_type = "NONE"  # decoding processes are the parallelism
    # what a header cuts off is cut off to the pixel: by default libavcodec keeps up to 31 for its speed
    context.flags |= Flags.unaligned
    context.thread_count = 1  # dav1d and libvpx look at this only: by default one per CPU
    return stream


def _videos(container: Any) -> list[Any]:
    """Return the video streams that are no pictures."""
    return [s for s in container.streams.video if not s.disposition & _PICTURES]


def is_plainly_best(container: Any, stream: Any) -> bool:
    """Tell whether every FFmpeg takes this video stream: versions rank their marks differently.

    The one of the highest bit rate is the best for all, if it has no fewer frames.
    """
    others = [other for other in _videos(container) if other.index != stream.index]
    return all(
        (stream.bit_rate or 0) > (other.bit_rate or math.inf) and stream.frames >= other.frames
        for other in others
    )


def best_video(container: Any) -> Any:
    """Return the stream that FFmpeg plays, and never the cover picture of something else."""
    best = container.streams.best("video")
    if best is None:
        raise ClipError("no_video", "the file has no video stream")
    if not best.disposition & _PICTURES:
        return best
    videos = _videos(container)
    if not videos:
        raise ClipError("no_video", "the file has no video stream but a cover picture")
    return max(videos, key=lambda s: (s.codec_context.width * s.codec_context.height, -s.index))


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


def container_failure(
    reason: str, what: str, error: BaseException, path: str
) -> ClipError | ProcessTroubleError:
    """Return the same for an error of reading a container: damage can ask for any amount of memory."""
    failed = failure(reason, what, error)
    if not lacks_memory(failed):
        return failed
    needed = _CONTAINER_BYTES + _BYTES_PER_BYTE * Path(path).stat().st_size
    if has_room(min(needed, _MOST_CONTAINER_BYTES)):
        return ClipError(reason, f"{what}: it asks for more memory than a file of its size needs")
    return failed


def decode(stream: Any, packet: Any) -> list[Any]:
    """Return the frames that come out for a packet, or for the end of the stream (None)."""
    try:
        return list(stream.codec_context.decode(packet))
    except (av.FFmpegError, ValueError) as error:
        raise failure("corrupt", "the video stream is damaged", error) from error


def is_early(frame: Any, start_pts: int | None) -> bool:
    """Tell whether a frame is shown before the one that decoding started at: it may lack references."""
    return frame.pts is not None and start_pts is not None and frame.pts < start_pts
