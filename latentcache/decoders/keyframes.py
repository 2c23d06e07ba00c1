"""What decord gets wrong, found without decoding: false key frames, and mirrored pictures."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from latentcache.decoders.crops import inside

#: NAL unit types that reset the decoder: IDR of H.264; BLA and IDR of HEVC. After other key frames,
#: frames can refer to what came before, and after a seek decord counts those that it cannot decode.
_H264_IDR = frozenset({5})
_HEVC_IRAP = frozenset(range(16, 21))
_MATROSKA_CLUSTER = b"\x1f\x43\xb6\x75"
#: The master element, its length, and the first of its children.
_MATROSKA_PROJECTION = re.compile(rb"\x76\x70(?:[\x80-\xff]|\x01.{7})\x76[\x71-\x75]", re.DOTALL)
_MATROSKA_HEAD_BYTES = 1 << 16
_MATROSKA = b"\x1a\x45\xdf\xa3"


def starts_afresh(codec: str, packet: bytes) -> bool:
    """Tell whether a key frame's packet is one from which decord can start, from its first bytes."""
    if codec == "h264":
        return any(unit & 31 in _H264_IDR for unit in _nal_units(packet))
    if codec == "hevc":
        return any(unit >> 1 & 63 in _HEVC_IRAP for unit in _nal_units(packet))
    if codec == "vp8":
        return packet[0] & 1 == 0
    if codec == "vp9":
        return packet[0] >> 6 == 2 and packet[0] & 0b1100 == 0
    return False


def _nal_units(packet: bytes) -> Iterator[int]:
    """Yield the first byte of every NAL unit of a packet with lengths of four bytes."""
    at = 0
    while at + 4 < len(packet):
        yield packet[at + 4]
        at += 4 + int.from_bytes(packet[at : at + 4])


def is_mirrored_or_projected(path: str) -> bool:
    """Tell whether an MP4 shows a track mirrored, or a Matroska file has a projection."""
    with Path(path).open("rb") as file:
        if file.read(4) == _MATROSKA:
            head = file.read(_MATROSKA_HEAD_BYTES).partition(_MATROSKA_CLUSTER)[0]
            return _MATROSKA_PROJECTION.search(head) is not None
        end = file.seek(0, 2)
        return any(_mirrors(tkhd) for tkhd in _track_headers(file, end))


def _track_headers(file: IO[bytes], end: int) -> Iterator[bytes]:
    """Yield the bodies of the `tkhd` boxes of an MP4."""
    for start, stop in inside(file, 0, end, (b"moov", b"trak", b"tkhd")):
        file.seek(start)
        yield file.read(min(stop - start, 128))


def _mirrors(tkhd: bytes) -> bool:
    """Tell whether the matrix of a track header has a negative determinant."""
    offset = 52 if tkhd[:1] == b"\x01" else 40
    if len(tkhd) < offset + 20:
        return False
    a, b, _, c, d = struct.unpack_from(">5i", tkhd, offset)
    return bool(a * d - b * c < 0)
