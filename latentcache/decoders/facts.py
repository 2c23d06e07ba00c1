"""What a video says of its pictures beside their values: a pixel's shape, interlacing, transfer, rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latentcache.decoders.aspects import aspect_of
from latentcache.decoders.crops import NO_CROP, Crop

#: Transfer characteristics of ITU-T H.273 that are HDR.
_HDR = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = 2
#: AVFieldOrder: 0 says nothing, 1 is progressive, the others are interlaced.
_PROGRESSIVE = 1
#: Of these FFmpeg knows without a decoded picture whether they are interlaced, and their transfer.
_TOLD_BY_HEADERS = frozenset({"h264", "vp8", "vp9"})


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """Facts of a video; of an image the defaults.

    height, width: of a picture as stored. pixel_aspect: width over height of a stored pixel, of the first
    picture, or of the last one that a reader gave. is_swapped: whether pictures are shown turned by 90
    degrees; None: their shape tells. transfer: SDR (also where nothing is said), PQ or HLG. fps: of its
    frames' times, on average; `rates.with_rate` makes it the one to count by. declared_fps: what the file
    declares. tick_s: the unit of its times. crop: what is cut off each picture before it is turned.
    are_told: by headers, so that no picture says more.
    """

    height: int = 0
    width: int = 0
    pixel_aspect: float = 1.0
    is_swapped: bool | None = None
    interlaced: bool = False
    transfer: str = "SDR"
    fps: float | None = None
    declared_fps: float | None = None
    tick_s: float = 0.0
    crop: Crop = NO_CROP
    are_told: bool = True

    def shown_aspect(self, shape: tuple[int, ...]) -> float:
        """Return width over height of a pixel of a picture [h, w], which is turned as shown."""
        if self.pixel_aspect == 1:
            return 1.0
        swapped = self.is_swapped
        if swapped is None:
            swapped = tuple(shape[:2]) != (self.height, self.width)
        return 1 / self.pixel_aspect if swapped else self.pixel_aspect


def transfer_of(declaring: Any) -> str | None:
    """Return the transfer that a stream's context or a frame declares, None where it declares none."""
    transfer = int(declaring.color_trc)
    return None if transfer == _UNSPECIFIED else _HDR.get(transfer, "SDR")


def facts_of(stream: Any, fps: float | None, crop: Crop) -> VideoFacts:
    """Return the facts of PyAV's stream."""
    context = stream.codec_context
    return VideoFacts(
        height=context.height,
        width=context.width,
        pixel_aspect=aspect_of(stream.sample_aspect_ratio),
        interlaced=int(getattr(context, "field_order", 0)) > _PROGRESSIVE,
        transfer=transfer_of(context) or "SDR",
        fps=fps,
        declared_fps=float(stream.average_rate or 0) or None,
        tick_s=float(stream.time_base or 0),
        crop=crop,
        are_told=context.name in _TOLD_BY_HEADERS,
    )


def display_size(shape: tuple[int, ...], aspect: float) -> tuple[int, int]:
    """Return the (height, width) in square pixels at which a picture [h, w] is shown: nothing gets smaller.

    aspect: of a pixel, see `VideoFacts.shown_aspect`.
    """
    height, width = shape[:2]
    if aspect >= 1:
        return height, round(width * aspect)
    return round(height / aspect), width
