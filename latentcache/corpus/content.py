"""What a file without a suffix is, by its first bytes."""

from __future__ import annotations

from typing import Literal

from latentcache.decoders.image_heads import HEIF_BRANDS, JXL_HEADS

#: So many bytes tell; a transport stream repeats its mark after one packet.
HEAD_BYTES = 512
_TS_PACKETS = (188, 192)
_IMAGES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"MM\0*",
    *JXL_HEADS,
)
_VIDEOS = (
    b"\x1a\x45\xdf\xa3",
    b"FLV\x01",
    b"OggS",
    b"GIF8",
    b"YUV4MPEG2",
    b"\0\0\x01\xba",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
)
#: Major brands of ISO base media files that are images.
_IMAGE_BRANDS = HEIF_BRANDS | {b"avif", b"avis"}


def kind_of(head: bytes) -> Literal["video", "image"] | None:
    """Return the kind of a file that begins with these bytes; None of what is neither."""
    if head[4:8] == b"ftyp":
        return "image" if head[8:12] in _IMAGE_BRANDS else "video"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free"):  # QuickTime before there was ftyp
        return "video"
    if head[:4] == b"RIFF":
        return {b"WEBP": "image", b"AVI ": "video"}.get(head[8:12])  # type: ignore[return-value]
    if head.startswith(_IMAGES) or (head[:2] == b"BM" and head[6:10] == bytes(4)):
        return "image"
    if head.startswith(_VIDEOS) or _is_transport_stream(head):
        return "video"
    return None


def _is_transport_stream(head: bytes) -> bool:
    """Tell whether every packet begins with its mark, after 4 bytes of time in Blu-ray's kind."""
    return any(
        len(head) > first + 2 * size
        and all(head[at] == 0x47 for at in range(first, len(head), size))
        for size, first in zip(_TS_PACKETS, (0, 4), strict=True)
    )
