"""Files of which only some bytes are here: whoever reads them gets blocks when they are asked for.

An MP4's header says of each packet where it is, how long it is and when it is shown. So its index is read
without its packets: see `suits` for those of which that is all that an index needs. Of Matroska, which has
no such header, `windows` reads the packets of the time that is wanted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from latentcache.decoders.h264 import FieldOrder
from latentcache.decoders.pictures import classifier
from latentcache.decoders.trouble import reading
from latentcache.storage.seekable import SeekableFile
from latentcache.storage.source_cache import CachedSource

#: What Matroska and WebM begin with.
EBML = b"\x1a\x45\xdf\xa3"
#: Boxes on the top level of an MP4 of which nothing is cut into fragments; there are hardly more than five.
_MAX_BOXES = 16
#: What is read ahead of a file that is read in sequence, at most.
_AHEAD_BYTES = 1 << 17


class NeedsWholeError(Exception):
    """A video of which ranges do not tell what its packets would."""


class RangedPath(str):
    """The path of a sparse file, with what fills its holes.

    media: of an MP4, where its packets are, as half-open ranges of bytes: all else has been read when it
    is open. is_matroska: it is read by windows of time.
    """

    __slots__ = ("is_matroska", "media", "source")
    source: CachedSource
    media: tuple[tuple[int, int], ...]
    is_matroska: bool

    def __new__(
        cls,
        source: CachedSource,
        media: Sequence[tuple[int, int]] = (),
        *,
        is_matroska: bool = False,
    ) -> RangedPath:
        """Name a source; see `of_video`."""
        path = super().__new__(cls, source.path)
        path.source = source
        path.media = tuple(media)
        path.is_matroska = is_matroska
        return path

    def open(self, *, blind: bool = False) -> RangedFile:
        """Open for FFmpeg. blind: packets that are absent are not fetched; they read as zeros."""
        return RangedFile(self, blind=blind)


class RangedFile(SeekableFile):
    """The file that a RangedPath names. What a read raises comes out of the call of whoever parses it."""

    def __init__(self, path: RangedPath, *, blind: bool) -> None:
        super().__init__(path.source.size)
        self.name = str(path)
        self._source, self._media, self._blind = path.source, path.media, blind
        self._is_matroska = path.is_matroska
        self._read_to, self._ahead = 0, 0

    def read(self, size: int = -1) -> bytes:
        """Read bytes. Raises ProcessTroubleError, and what `CachedSource.ensure` raises of the source."""
        length = max(0, self._size - self._position)
        length = length if size < 0 else min(size, length)
        start, end = self._position, self._position + length
        with reading():
            if self._blind:
                data = self._read_blindly(start, end)
            else:
                self._read_ahead(start, end)
                data = self._source.read(start, length)
        self._position = end
        return data

    def _read_ahead(self, start: int, end: int) -> None:
        """Fetch more at a time the longer a file is read in sequence."""
        if start != self._read_to:
            self._ahead = 0
        self._read_to = end
        if not self._source.has(start, end):
            self._source.ensure(start, min(end + self._ahead, self._source.size))
            most = 0 if self._is_matroska else _AHEAD_BYTES  # whose windows are fetched at once
            self._ahead = min(most, max(end - start, 2 * self._ahead))

    def _read_blindly(self, start: int, end: int) -> bytes:
        """Read zeros for absent packets; what else there is, is fetched."""
        at = start
        for first, last in (*self._media, (end, end)):
            if at < min(first, end):
                self._source.ensure(at, min(first, end))
            at = max(at, last)
        return self._source.read(start, end - start, only_present=True)


def open_binary(path: str) -> IO[bytes]:
    """Open a file for reading its bytes; what is absent of one that is read by ranges is fetched."""
    if isinstance(path, RangedPath):
        return cast("IO[bytes]", path.open())
    return Path(path).open("rb")


def of_video(source: CachedSource) -> RangedPath:
    """Return the path of a video that can be read by ranges. Raises NeedsWholeError of all others."""
    if source.read(0, len(EBML)) == EBML:
        return RangedPath(source, is_matroska=True)
    return RangedPath(source, tuple(_media(source)))


def suits(codec: str, extradata: bytes | None) -> bool:
    """Tell whether each packet of a stream is one picture, whatever is in it."""
    if codec == "h264":
        return FieldOrder(extradata or b"").is_progressive
    return classifier(codec, extradata) is None


def _media(source: CachedSource) -> Iterator[tuple[int, int]]:
    """Yield the ranges of an MP4's packets."""
    kinds = []
    for kind, start, end in _boxes(source):
        kinds.append(kind)
        if kind == b"moov":
            source.ensure(start, end)  # at once: FFmpeg reads it bit by bit
        if kind == b"mdat":
            yield start, end
    if kinds[:1] not in ([b"ftyp"], [b"moov"], [b"wide"], [b"mdat"]) or kinds.count(b"moov") != 1:
        raise NeedsWholeError
    if len(kinds) > _MAX_BOXES:
        raise NeedsWholeError


def _boxes(source: CachedSource) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box on the top level, and where its body begins and ends."""
    at = 0
    for _ in range(_MAX_BOXES + 1):
        head = source.read(at, 16)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        body = 8
        if size == 1 and len(head) == 16:
            size, body = struct.unpack_from(">Q", head, 8)[0], 16
        size = size or source.size - at
        if size < body or kind == b"moof":
            raise NeedsWholeError
        yield kind, at + body, min(at + size, source.size)
        at += size
