"""Gaps of time in a recording: a pause, or a loss. Pictures' headers have their places in order.

A camera that stops, or a recorder that drops a picture, leaves a gap before the encoder, which numbers the
pictures that it gets. What is lost behind the encoder takes its number with it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latentcache.decoders.h264 import FieldOrder, Place
from latentcache.decoders.hevc import PictureOrder
from latentcache.decoders.streams import DEMUX_ERRORS, open_video

_GROUP, _PICTURE = b"\0\0\1\xb8", b"\0\0\1\0"
#: MPEG-2 counts in groups of pictures, modulo this.
_MPEG_MODULUS = 1 << 10


class _Placed(NamedTuple):
    """A picture's place, and how many times numbers had begun again."""

    part: int
    place: Place


def losses(
    path: str,
    order: Sequence[int],
    gaps: npt.NDArray[np.int64],
    num_missing: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Return the gaps at which pictures may be lost: all but those whose pictures follow each other.

    order: which packets the frames come of, in the order of showing. gaps: frames before one.
    num_missing: how many would be shown in each.
    """
    placed = _places(path) if len(gaps) else []
    if len(placed) <= max(order, default=0):
        return gaps
    steps = [_step(placed[a], placed[b]) for a, b in itertools.pairwise(order)]
    known = Counter(step for step in steps if step)
    if not known:
        return gaps
    usual = known.most_common(1)[0][0]
    follows = [
        steps[gap] == usual and missing * usual < _modulus(placed[order[gap]])
        for gap, missing in zip(gaps.tolist(), num_missing.tolist(), strict=True)
    ]
    lossy: npt.NDArray[np.int64] = gaps[~np.array(follows, dtype=bool)]
    return lossy


def _places(path: str) -> list[_Placed | None]:
    """Return the places of a stream's pictures by packet, as far as it can be read."""
    found: list[_Placed | None] = []
    part = 0
    container, stream = open_video(path)
    with container:
        place_of = _reader(stream.codec_context)
        if place_of is None:
            return found
        try:
            for packet in container.demux(stream):
                if packet.size:
                    place = place_of(packet)
                    part += place is not None and place.begins
                    found.append(None if place is None else _Placed(part, place))
        except DEMUX_ERRORS:
            return found
    return found


def _reader(context: Any) -> Callable[[Any], Place | None] | None:
    if context.name == "h264":
        return FieldOrder(context.extradata or b"").place
    if context.name == "hevc":
        return PictureOrder(context.extradata or b"").place
    return _mpeg_place if context.name in ("mpeg1video", "mpeg2video") else None


def _mpeg_place(packet: Any) -> Place | None:
    data = bytes(packet)
    at = data.find(_PICTURE)
    if at < 0 or at + 6 > len(data):
        return None
    number = int.from_bytes(data[at + 4 : at + 6]) >> 6
    return Place(data.find(_GROUP, 0, at) >= 0, number, _MPEG_MODULUS)


def _step(one: _Placed | None, other: _Placed | None) -> int | None:
    """Return by how much the number grows from one picture to the next; None if nothing tells."""
    if one is None or other is None or one.part != other.part:
        return None
    return (other.place.number - one.place.number) % one.place.modulus


def _modulus(placed: _Placed | None) -> int:
    return placed.place.modulus if placed else 0
