"""What a container says is cut off before a picture is shown: MP4's clean aperture, Matroska's crop.

FFmpeg's own programs cut it off, and decoders do not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
#: A VisualSampleEntry's fields, before which its children do not start.
_ENTRY_BYTES = 78
#: Elements that are looked at, at most, before Matroska's tracks: damage can make any number.
_MAX_ELEMENTS = 1000
_SEGMENT, _TRACKS, _CLUSTER = 0x18538067, 0x1654AE6B, 0x1F43B675
_TRACK, _TRACK_TYPE, _VIDEO = 0xAE, 0x83, 0xE0
#: By element what it cuts off, and whether a track is of video.
_PIXEL_CROP = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
_IS_VIDEO = 1


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Pixels of a picture as stored that are not shown, by side."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def fits(self, height: int, width: int) -> bool:
        """Tell whether something is cut off a picture, and something is left of it."""
        rows, columns = self.top + self.bottom, self.left + self.right
        return rows + columns > 0 and rows < height and columns < width


NO_CROP = Crop()


def crop_of(path: str, container: Any, stream: Any) -> Crop:
    """Return what the container cuts off the pictures of a video stream."""
    number = list(container.streams.video).index(stream)
    kind = container.format.name
    if kind not in (MP4, MATROSKA):
        return NO_CROP
    with Path(path).open("rb") as file:
        crops = _of_mp4(file) if kind == MP4 else _of_matroska(file)
    crop = crops[number] if number < len(crops) else NO_CROP
    context = stream.codec_context
    return crop if crop.fits(context.height, context.width) else NO_CROP


def boxes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end of the body) of the boxes of an MP4 between two offsets."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, kind = struct.unpack_from(">I4s", head)
        body = 8
        if size == 1 and len(head) == 16:
            size, body = struct.unpack_from(">Q", head, 8)[0], 16
        size = size or end - start
        if size < body:
            return
        yield kind, start + body, min(end, start + size)
        start += size


def inside(
    file: IO[bytes], start: int, end: int, path: Sequence[bytes]
) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the bodies of an MP4's boxes at a path of kinds."""
    for kind, first, last in boxes(file, start, end):
        if kind != path[0]:
            continue
        if len(path) == 1:
            yield first, last
        else:
            yield from inside(file, first, last, path[1:])


def _of_mp4(file: IO[bytes]) -> list[Crop]:
    """Return the crops of an MP4's video tracks."""
    crops = []
    for start, end in inside(file, 0, file.seek(0, 2), (b"moov", b"trak", b"mdia")):
        handlers = [_read(file, a + 8, 4) for a, _ in inside(file, start, end, (b"hdlr",))]
        if b"vide" not in handlers:
            continue
        crop = NO_CROP
        for first, last in inside(file, start, end, (b"minf", b"stbl", b"stsd")):
            for _, entry, entry_end in boxes(file, first + 8, last):
                crop = _clean_aperture(file, entry, entry_end) or crop
        crops.append(crop)
    return crops


def _clean_aperture(file: IO[bytes], entry: int, end: int) -> Crop | None:
    """Return the crop of a sample entry's `clap`, None where there is none that FFmpeg takes."""
    size = _read(file, entry + 24, 4)
    for start, _ in inside(file, entry + _ENTRY_BYTES, end, (b"clap",)):
        values = _read(file, start, 32)
        if len(size) == 4 and len(values) == 32:
            width, height = struct.unpack(">2H", size)
            return _crop_of_aperture(width, height, struct.unpack(">8i", values))
    return None


def _crop_of_aperture(width: int, height: int, values: Sequence[int]) -> Crop | None:
    if min(values[:4]) < 0 or min(values[1::2]) <= 0:
        return None
    shown_width, shown_height, x, y = (
        Fraction(a, b) for a, b in zip(values[::2], values[1::2], strict=True)
    )
    left, right = _sides(width, shown_width, x)
    top, bottom = _sides(height, shown_height, y)
    if min(left, right, top, bottom) < 0:
        return None
    return Crop(top=top, bottom=bottom, left=left, right=right)


def _sides(size: int, shown: Fraction, offset: Fraction) -> tuple[int, int]:
    """Return what is cut off before and after a part that is centred but for its offset."""
    centre, half = Fraction(size - 1, 2) + offset, (shown - 1) / 2
    return int(centre - half), size - 1 - int(centre + half)


def _of_matroska(file: IO[bytes]) -> list[Crop]:
    """Return the crops of a Matroska file's video tracks."""
    end = file.seek(0, 2)
    crops = []
    for tracks in _found(file, 0, end, (_SEGMENT, _TRACKS)):
        for identifier, start, stop in elements(file, *tracks):
            if identifier == _TRACK:
                fields = {i: (a, b) for i, a, b in elements(file, start, stop)}
                if number_at(file, fields.get(_TRACK_TYPE)) == _IS_VIDEO:
                    crops.append(_pixel_crop(file, fields.get(_VIDEO)))
        return crops
    return crops


def _pixel_crop(file: IO[bytes], video: tuple[int, int] | None) -> Crop:
    if video is None:
        return NO_CROP
    sides: Mapping[str, int] = {
        _PIXEL_CROP[identifier]: number_at(file, (start, end))
        for identifier, start, end in elements(file, *video)
        if identifier in _PIXEL_CROP
    }
    return Crop(**sides)


def _found(file: IO[bytes], start: int, end: int, path: Sequence[int]) -> Iterator[tuple[int, int]]:
    for identifier, first, last in elements(file, start, end):
        if identifier == path[0]:
            if len(path) == 1:
                yield first, last
            else:
                yield from _found(file, first, last, path[1:])


def elements(
    file: IO[bytes],
    start: int,
    end: int,
    *,
    stop_at: int | None = _CLUSTER,
    limit: int = _MAX_ELEMENTS,
    is_cut: bool = True,
) -> Iterator[tuple[int, int, int]]:
    """Yield (identifier, start, end) of EBML elements, up to the first of a kind, or so many.

    is_cut: one that goes on after `end` ends there; else it is not yielded.
    """
    for _ in range(limit):
        head = _read(file, start, 12)
        width = 9 - head[0].bit_length() if head else 9
        if width > 4 or len(head) < width + 1 or not head[width]:
            return
        identifier = int.from_bytes(head[:width])
        length = 9 - head[width].bit_length()
        if len(head) < width + length:
            return
        size = int.from_bytes(head[width : width + length]) - (1 << 7 * length)
        body = start + width + length
        is_open = size == (1 << 7 * length) - 1
        if identifier == stop_at or (not is_cut and (is_open or body + size > end)):
            return
        start = end if is_open else min(end, body + size)
        yield identifier, body, start
        if start >= end:
            return


def number_at(file: IO[bytes], at: tuple[int, int] | None) -> int:
    """Return the whole number that an element holds; 0 where there is none."""
    return 0 if at is None else int.from_bytes(_read(file, at[0], max(0, min(8, at[1] - at[0]))))


def _read(file: IO[bytes], start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
