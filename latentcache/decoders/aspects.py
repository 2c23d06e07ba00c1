"""The shape of the pixels of each picture: it can change on the way, while the size stays.

What the container declares counts for all pictures, and where it declares nothing, each picture's own does:
the rule of FFmpeg's `av_guess_sample_aspect_ratio`, which players follow.
"""

from __future__ import annotations

import bisect
from fractions import Fraction
from functools import cached_property
from typing import Any

from av.codec.context import Flags

from latentcache.decoders.complaints import Complaints
from latentcache.decoders.streams import decode, open_any
from latentcache.errors import ClipError

#: Beyond these a pixel's shape is damage, and pixels are taken for square. Half-width anamorphic is 2.9.
MAX_PIXEL_ASPECT = 4.0
#: With these FFmpeg looks into no packet, so what it knows of a stream is what the container says.
_WITHOUT_DECODERS = {"fflags": "noparse", "codec_whitelist": "none", "probesize": "32"}


def aspect_of(declared: Fraction | None) -> float:
    """Return width over height of a pixel; 1 where nothing is declared, or what no pixel has."""
    aspect = float(declared or 1)
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


class Container:
    """What a file's container, without its pictures, says of a video stream; read when it is asked for."""

    def __init__(self, path: str, stream: int) -> None:
        self._path, self._stream = path, stream

    @cached_property
    def aspect(self) -> Fraction | None:
        """The shape of all pixels, None where the container leaves it to the pictures."""
        try:
            with Complaints(), open_any(self._path, _WITHOUT_DECODERS) as container:
                stream = list(container.streams)[self._stream : self._stream + 1]
                return getattr(stream[0], "sample_aspect_ratio", None) if stream else None
        except ClipError:  # formats that have no header, and so say nothing
            return None


class AspectDecoder:
    """Decodes a stream's packets, and knows the shape of the pixels of each frame that comes out.

    The decoder only tells that of the packet which it was given last, so frames are followed to theirs.
    """

    def __init__(self, container: Container, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._context = stream.codec_context
        self._context.flags |= Flags.copy_opaque
        self._declared = stream.sample_aspect_ratio
        self._num_packets = 0
        #: From which packets on the stream itself declares what.
        self._starts, self._own = [0], [self._context.sample_aspect_ratio]

    def decode(self, packet: Any) -> list[Any]:
        """Return the frames that come out for a packet, or for the end (None); see `streams.decode`."""
        if packet is not None:
            self._num_packets += 1
            packet.opaque = self._num_packets
        frames = decode(self._stream, packet)
        if self._context.sample_aspect_ratio != self._own[-1]:
            self._starts.append(self._num_packets)
            self._own.append(self._context.sample_aspect_ratio)
        return frames

    def aspect(self, frame: Any) -> float:
        """Return width over height of a pixel of a frame, as it is stored."""
        number = self._num_packets if frame.opaque is None else frame.opaque
        own = self._own[max(0, bisect.bisect(self._starts, number) - 1)]
        if own == self._declared:
            return aspect_of(own)
        return aspect_of(self._container.aspect or own)
