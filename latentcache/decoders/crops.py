"""What a container says is cut off before a picture is shown: MP4's clean aperture, Matroska's crop.

FFmpeg's own programs cut it off, and decoders do not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

from latentcache.decoders.ebml import TRACKS, Span, elements, find, number_at, segment_of
from latentcache.decoders.ranged import open_binary
from latentcache.errors import ClipError

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
#: A VisualSampleEntry's fields, before which its children do not start.
_ENTRY_BYTES = 78
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
    """Return what the container cuts off the pictures of a video stream.

    Raises ClipError of Matroska where FFmpeg finds a track, and this does not.
    """
    number = list(container.streams.video).index(stream)
    kind = container.format.name
    if kind not in (MP4, MATROSKA):
        return NO_CROP
    with open_binary(path) as file:
        crops = _of_mp4(file) if kind == MP4 else _of_matroska(file)
    if kind == MATROSKA and number >= len(crops):
        raise ClipError(
            "unreadable",
            "the video's track is not where the file's header says, so it is unknown what is cut off its "
            "pictures. Write the file again: ffmpeg -i FILE -c copy NEW_FILE",
        )
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
    segment = segment_of(file)
    tracks = segment and find(file, segment, TRACKS)
    crops = []
    for identifier, start, stop in elements(file, *tracks) if tracks else ():
        if identifier == _TRACK:
            fields = {i: (a, b) for i, a, b in elements(file, start, stop)}
            if number_at(file, fields.get(_TRACK_TYPE)) == _IS_VIDEO:
                crops.append(_pixel_crop(file, fields.get(_VIDEO)))
    return crops


def _pixel_crop(file: IO[bytes], video: Span | None) -> Crop:
    if video is None:
        return NO_CROP
    sides: Mapping[str, int] = {
        _PIXEL_CROP[identifier]: number_at(file, (start, end))
        for identifier, start, end in elements(file, *video)
        if identifier in _PIXEL_CROP
    }
    return Crop(**sides)


def _read(file: IO[bytes], start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
