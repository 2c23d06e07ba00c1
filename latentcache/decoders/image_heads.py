"""What an image's first bytes tell: which package Pillow needs for it, and how large a WebP is. No I/O."""

from __future__ import annotations

#: Major brands of ISO base media files that are HEIF; FFmpeg and Pillow read AVIF by themselves.
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
#: How a bare stream of JPEG XL begins, and one in a container.
JXL_HEADS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
HEAD_BYTES = 30
#: Sides of a WebP's pictures have 14 bits.
_MOST_WEBP = (1 << 14) - 1


def suffix_by_content(head: bytes) -> str:
    """Return the suffix, with its dot, of a file that begins so; empty of all other formats."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return ".heic"
    return ".jxl" if head.startswith(JXL_HEADS) else ""


def webp_shape(head: bytes) -> tuple[int, int] | None:
    """Return the height and width of a WebP that begins so; None of all other formats, and of damage."""
    if len(head) < HEAD_BYTES or (head[:4], head[8:12]) != (b"RIFF", b"WEBP"):
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (1 + _number(head[at : at + 3]) for at in (24, 27))
    elif kind == b"VP8L":
        bits = _number(head[21:25])
        width, height = 1 + (bits & _MOST_WEBP), 1 + (bits >> 14 & _MOST_WEBP)
    else:
        width, height = (_number(head[at : at + 2]) & _MOST_WEBP for at in (26, 28))
    return (height, width) if max(height, width) <= _MOST_WEBP else None


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
