"""Decoded frames to RGB: one pixel for one frame, whichever decoder and container it came by."""

from __future__ import annotations

import errno
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from latentcache.decoders.crops import NO_CROP, Crop
from latentcache.decoders.frames import Frame
from latentcache.errors import ClipError

#: Frames at the end of a stream have no time base, and only pixels go through the filter.
_ANY_TIME = Fraction(1, 1000)


def to_rgb(frame: Any, crop: Crop = NO_CROP) -> Frame:
    """Return a frame of PyAV as uint8 [h, w, 3], without what is cut off, turned as shown.

    Raises ClipError where FFmpeg does not know the matrix of its colours.
    """
    try:
        # threads: by default swscale keeps a thread per CPU for each frame until the frame is freed
        pixels = _as_shown(_as_declared(frame), crop).to_ndarray(format="rgb24", threads=1)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise ClipError(
            "unreadable",
            f"FFmpeg does not convert the pictures' colours to RGB: format {frame.format.name}, matrix "
            f"{int(frame.colorspace)} of ITU-T H.273. Convert the file with a program that knows it",
        ) from error
    return np.ascontiguousarray(turned(pixels, frame))


def _as_declared(frame: Any) -> Any:
    """Return the frame in a format of its own range.

    A stream that changes from full to limited range leaves libavcodec's format as it was, which is one of
    full range (yuvj420p), and swscale believes the format. Only the frame tells.
    """
    name = frame.format.name
    if not name.startswith("yuvj") or int(frame.color_range) != ColorRange.MPEG:
        return frame
    plain = VideoFrame(frame.width, frame.height, name.replace("yuvj", "yuv"))
    for source, target in zip(frame.planes, plain.planes, strict=True):
        _samples(target)[:] = _samples(source)
    plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
    return plain


def _samples(plane: Any) -> npt.NDArray[np.uint8]:
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def _as_shown(frame: Any, crop: Crop) -> Any:
    """Return the frame cropped, and without its flag of being interlaced; the planes are shared.

    swscale interpolates the chroma of interlaced frames field by field, and decord's older one does
    not. FFmpeg's own `scale` filter does not either unless it is asked to, and that is the convention.
    FFmpeg's `crop` filter keeps samples of chroma whole.
    """
    filters = []
    if crop.fits(frame.height, frame.width):
        size = f"out_w=iw-{crop.left + crop.right}:out_h=ih-{crop.top + crop.bottom}"
        filters.append(("crop", f"{size}:x={crop.left}:y={crop.top}"))
    if frame.interlaced_frame:
        filters.append(("setfield", "mode=prog"))
    if not filters:
        return frame
    graph = Graph()
    graph.threads = 1
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=_ANY_TIME
    )
    graph.link_nodes(buffer, *(graph.add(*one) for one in filters), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()


class Turn(NamedTuple):
    """How a picture is shown: with rows for columns first, then from its bottom up, from right to left."""

    is_swapped: bool = False
    is_upside_down: bool = False
    is_mirrored: bool = False


#: By quarter turns against the clock.
_QUARTERS = (Turn(), Turn(True, True, False), Turn(False, True, True), Turn(True, False, True))


def turn_of(frame: Any) -> Turn:
    """Return how a frame is turned and mirrored by its display matrix, to multiples of 90 degrees."""
    try:
        # `frame.side_data` would keep this object in the frame: a cycle, and no frame would be freed
        side_data = SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # a kind that PyAV has no name for, such as the view of spatial video
        return _QUARTERS[round(frame.rotation / 90) % 4]
    if side_data is None:
        return Turn()
    # [a b u, c d v, x y w]: the pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    is_swapped = abs(b) > abs(a)
    if is_swapped:
        a, d = c, b
    return Turn(is_swapped, d < 0, a < 0)


def turned(pixels: npt.NDArray[Any], frame: Any) -> npt.NDArray[Any]:
    """Return `pixels` of a frame turned and mirrored as it is shown."""
    is_swapped, is_upside_down, is_mirrored = turn_of(frame)
    pixels = pixels.swapaxes(0, 1) if is_swapped else pixels
    return pixels[:: -1 if is_upside_down else 1, :: -1 if is_mirrored else 1]
