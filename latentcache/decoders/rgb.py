"""Decoded frames to RGB: one pixel for one frame, whichever decoder and container it came by."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer

from latentcache.decoders.frames import Frame

#: Frames at the end of a stream have no time base, and only pixels go through the filter.
_ANY_TIME = Fraction(1, 1000)


def to_rgb(frame: Any) -> Frame:
    """Return a frame of PyAV as uint8 [h, w, 3], turned as shown."""
    # threads: by default swscale keeps a thread per CPU for each frame until the frame is freed
    pixels = _as_progressive(frame).to_ndarray(format="rgb24", threads=1)
    return np.ascontiguousarray(turned(pixels, frame))


def _as_progressive(frame: Any) -> Any:
    """Return the frame without its flag of being interlaced; the planes are shared.

    swscale interpolates the chroma of interlaced frames field by field, and decord's older one does
    not. FFmpeg's own `scale` filter does not either unless it is asked to, and that is the convention.
    """
    if not frame.interlaced_frame:
        return frame
    graph = Graph()
    graph.threads = 1
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=_ANY_TIME
    )
    graph.link_nodes(buffer, graph.add("setfield", "mode=prog"), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()


def turned(pixels: npt.NDArray[Any], frame: Any) -> npt.NDArray[Any]:
    """Return `pixels` of a frame turned and mirrored as its display matrix says, to multiples of 90."""
    try:
        # `frame.side_data` would keep this object in the frame: a cycle, and no frame would be freed
        side_data = SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # a kind that PyAV has no name for, such as the view of spatial video
        return np.rot90(pixels, round(frame.rotation / 90) % 4)
    if side_data is None:
        return pixels
    # [a b u, c d v, x y w]: the pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
