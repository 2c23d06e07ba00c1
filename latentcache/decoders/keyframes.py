"""What decord gets wrong, found without decoding: false key frames, and odd display matrices."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from latentcache.decoders.crops import inside

#: NAL unit types that reset the decoder: IDR of H.264; BLA and IDR of HEVC. After other key frames,
#: frames can refer to what came before, and after a seek decord counts those that it cannot decode.
_H264_IDR = frozenset({5})
_HEVC_IRAP = frozenset(range(16, 21))
#: The supplemental message about how to show a picture.
_ORIENTATION = 47
#: a, b, c and d of a display matrix, in 1/65536: the pixel at (x, y) is shown at (a x + c y, b x + d y).
_Matrix = tuple[int, int, int, int]
_IDENTITY: _Matrix = (1 << 16, 0, 0, 1 << 16)


@dataclass(frozen=True, kw_only=True)
class _NalKinds:
    """A codec's NAL unit types: they are in the first byte, above a bit or none, after a header.

    starts: of pictures that reset the decoder. message: of supplemental information. sequence: of sequence
    parameter sets.
    """

    shift: int
    mask: int
    header_bytes: int
    starts: frozenset[int]
    message: int
    sequence: int

    def of(self, unit: memoryview) -> int:
        """Return the type of a unit."""
        return unit[0] >> self.shift & self.mask


_NAL_KINDS = {
    "h264": _NalKinds(shift=0, mask=31, header_bytes=1, starts=_H264_IDR, message=6, sequence=7),
    "hevc": _NalKinds(shift=1, mask=63, header_bytes=2, starts=_HEVC_IRAP, message=39, sequence=33),
}


def starts_afresh(codec: str, packet: bytes, extradata: bytes = b"") -> bool:
    """Tell whether a key frame's packet is one from which decord can start, from its first bytes.

    It is not where the packet says how its picture is turned: FFmpeg's later versions turn that one. Nor
    where it brings a sequence parameter set that the header's `extradata` lacks: from there on pixels can
    have another shape, of which decord does not tell.
    """
    if codec in _NAL_KINDS:
        kinds = _NAL_KINDS[codec]
        units = [(kinds.of(unit), unit) for unit in _nal_units(packet)]
        return any(kind in kinds.starts for kind, _ in units) and not any(
            (kind == kinds.message and _turns(unit[kinds.header_bytes :]))
            or (kind == kinds.sequence and bytes(unit) not in extradata)
            for kind, unit in units
        )
    if codec == "vp8":
        return packet[0] & 1 == 0
    if codec == "vp9":
        return packet[0] >> 6 == 2 and packet[0] & 0b1100 == 0
    return False


def _nal_units(packet: bytes) -> Iterator[memoryview]:
    """Yield the NAL units, none empty, of a packet with lengths of four bytes."""
    at, view = 0, memoryview(packet)
    while at + 4 < len(packet):
        end = at + 4 + int.from_bytes(packet[at : at + 4])
        yield view[at + 4 : max(end, at + 5)]
        at = end


def _turns(messages: memoryview) -> bool:
    """Tell whether one of supplemental messages, without their NAL unit's header, is of orientation."""
    data, at = bytes(messages).replace(b"\0\0\3", b"\0\0"), 0
    while at + 2 < len(data):
        kind, at = _extended(data, at)
        size, at = _extended(data, at)
        if kind == _ORIENTATION:
            return True
        at += size
    return False


def _extended(data: bytes, at: int) -> tuple[int, int]:
    """Return a number that goes on after each byte of 255, and where it ends."""
    end = at
    while data[end : end + 1] == b"\xff":
        end += 1
    return 255 * (end - at) + int.from_bytes(data[end : end + 1]), end + 1


def is_oddly_shown(path: str) -> bool:
    """Tell whether an MP4 mirrors a track, turns it by odd degrees, or describes its samples twice.

    Of samples by another description pixels can have another shape, of which decord does not tell.
    """
    with Path(path).open("rb") as file:
        if any(count > 1 for count in _num_descriptions(file)):
            return True
        movies = _matrices(file, (b"moov", b"mvhd"), 36) or [_IDENTITY]
        tracks = _matrices(file, (b"moov", b"trak", b"tkhd"), 40)
        return any(_is_odd(track, movie) for track in tracks for movie in movies)


def _num_descriptions(file: IO[bytes]) -> Iterator[int]:
    """Yield how many ways there are in which the samples of each track are described."""
    path = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    for start, _ in inside(file, 0, file.seek(0, 2), path):
        file.seek(start + 4)
        yield int.from_bytes(file.read(4))


def _matrices(file: IO[bytes], path: Sequence[bytes], offset: int) -> list[_Matrix]:
    """Return the matrices of an MP4's headers at a path, which have them at an offset, or 12 bytes on."""
    found = []
    for start, stop in inside(file, 0, file.seek(0, 2), path):
        file.seek(start)
        header = file.read(min(stop - start, 128))
        at = offset + 12 if header[:1] == b"\x01" else offset  # times of 8 bytes instead of 4
        if len(header) >= at + 20:
            a, b, _, c, d = struct.unpack_from(">5i", header, at)
            found.append((a, b, c, d))
    return found


def _is_odd(track: _Matrix, movie: _Matrix) -> bool:
    """Tell whether a matrix mirrors, or both, which FFmpeg multiplies, are no quarter turns."""
    if _determinant(track) < 0 or _determinant(movie) < 0:
        return True
    a, b, c, d = (
        (track[i] * movie[j] >> 16) + (track[i + 1] * movie[j + 2] >> 16)
        for i in (0, 2)
        for j in (0, 1)
    )
    is_quarter = b == c == 0 or a == d == 0
    return any((a, b, c, d)) and not (is_quarter and _determinant((a, b, c, d)) > 0)


def _determinant(matrix: _Matrix) -> int:
    a, b, c, d = matrix
    return a * d - b * c
