"""Images that Pillow reads with another package only, by their first bytes. No I/O."""

from __future__ import annotations

#: Major brands of ISO base media files that are HEIF; FFmpeg and Pillow read AVIF by themselves.
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
#: How a bare stream of JPEG XL begins, and one in a container.
JXL_HEADS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
#: What tells a format.
HEAD_BYTES = 16


def suffix_by_content(head: bytes) -> str:
    """Return the suffix, with its dot, of a file that begins so; empty of all other formats."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return ".heic"
    return ".jxl" if head.startswith(JXL_HEADS) else ""
