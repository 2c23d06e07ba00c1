"""Which videos are for decord: those that its FFmpeg, an old one, shows as PyAV does."""

from __future__ import annotations

from typing import Any

from latentcache.decoders.crops import MATROSKA, MP4
from latentcache.decoders.keyframes import is_oddly_shown
from latentcache.decoders.packets import PacketTable, first_again
from latentcache.decoders.rgb import Turn, turn_of
from latentcache.decoders.streams import DEMUX_ERRORS, decode, is_plainly_best
from latentcache.errors import ClipError

#: decord equals PyAV bit for bit on these, but for odd sizes. It gets 10-bit video wrong and does not tell.
DECORD_PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p"})
#: Matrices of ITU-T H.273 that decord's swscale knows, or that are not given. It does not tell of others.
DECORD_MATRICES = frozenset({1, 2, 4, 5, 6, 7, 9})
#: In others, such as MPEG-TS and AVI, decord's seeking ends at wrong frames and does not tell.
DECORD_FORMATS = frozenset({MP4, MATROSKA})
#: decord pads rows to so many pixels, and where a row is a divisor of that, takes padding for channels.
DECORD_ROW_PIXELS = 32
#: What decoding a packet raises that cannot be decoded.
_UNDECODED: tuple[type[Exception], ...] = (*DEMUX_ERRORS, ClipError)


def decord_knows(path: str, container: Any, stream: Any) -> bool:
    """Tell whether decord shows the pictures of a stream as they are, by what headers say."""
    context = stream.codec_context
    return (
        context.pix_fmt in DECORD_PIXEL_FORMATS
        and int(context.colorspace) in DECORD_MATRICES
        and context.height % 2 == context.width % 2 == 0
        and not _confuses_decord(context.width)
        and not _confuses_decord(context.height)  # it may be turned
        and container.format.name in DECORD_FORMATS
        and is_plainly_best(container, stream)
        and (container.format.name != MP4 or not is_oddly_shown(path))
    )


def is_as_stored(container: Any, stream: Any, packets: PacketTable) -> bool:
    """Tell whether FFmpeg neither turns nor mirrors the first picture of a file that can be sought.

    Matroska's projections are elements of a header that can be anywhere, and decord knows of none.
    """
    first = first_again(container, stream, packets)
    if first is None:
        return False
    try:
        frames = [*decode(stream, first), *decode(stream, None)]
    except _UNDECODED:
        return False
    return bool(frames) and turn_of(frames[0]) == Turn()


def _confuses_decord(width: int) -> bool:
    padded = -width % DECORD_ROW_PIXELS
    return padded > 0 and 3 * padded % width == 0
