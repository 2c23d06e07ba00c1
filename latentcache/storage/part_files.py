"""Sources that are a part of a file, read without the rest of it: ranges of bytes, and rows of tables."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from latentcache.errors import ClipError
from latentcache.storage.filesystems import is_local_filesystem, open_filesystem
from latentcache.storage.parts import ByteRange, TableRow, part_of
from latentcache.storage.seekable import SeekableFile
from latentcache.storage.source_files import (
    file_facts,
    open_source,
    read_range,
)
from latentcache.storage.urls import redact_url

#: What one request asks for: of a source that is read whole, and of one of which some places are read.
_PIECE_BYTES = 8 << 20
_PLACE_BYTES = 1 << 16


@contextlib.contextmanager
def open_whole_or_part(
    url: str, options: Mapping[str, Any] | None = None, *, for_parts: bool = False
) -> Iterator[IO[bytes]]:
    """Open a source for reading, be it a file or a part of one, as `open_source` does.

    Raises ClipError where the file no longer has such a part.
    """
    part = part_of(url)
    if isinstance(part, ByteRange):
        yield _open_range(part, options, _PLACE_BYTES if for_parts else _PIECE_BYTES)
    elif isinstance(part, TableRow):
        yield io.BytesIO(_read_row(part, options))
    else:
        with open_source(url, options, for_parts=for_parts) as file:
            yield file


def _read_row(part: TableRow, options: Mapping[str, Any] | None) -> bytes:
    from latentcache.storage.row_bytes import (
        read_row,  # PyArrow is much to load for those who need none
    )

    return read_row(part, options)


def _open_range(part: ByteRange, options: Mapping[str, Any] | None, piece_bytes: int) -> IO[bytes]:
    size = file_facts(part.file, options).get("size")
    if size is not None:
        _check_end(part, size)
    return io.BufferedReader(_Range(part, options), min(piece_bytes, max(1, part.size)))


def _check_end(part: ByteRange, size: int) -> None:
    if size < part.offset + part.size:
        raise ClipError(
            "source_changed",
            f"{redact_url(part.file)} has {size} bytes, and this source's end at byte "
            f"{part.offset + part.size}: the file was cut off or replaced since it was listed",
        )


@dataclass(frozen=True, kw_only=True)
class Ranged:
    """A remote source that can be read by ranges. validator: what its storage says of its content."""

    file: str
    options: Mapping[str, Any] | None
    offset: int
    size: int
    validator: str

    def read(self, start: int, end: int) -> bytes:
        """Read bytes. Raises what `read_range` raises."""
        return read_range(self.file, self.offset + start, self.offset + end, self.options)

    def is_same(self) -> bool:
        """Tell whether its file is the one that was there. Raises FileNotFoundError and StorageError."""
        return _validator(file_facts(self.file, self.options)) == self.validator


#: What stores say of a file's content that no other content has.
_VALIDATORS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5")


def _validator(facts: Mapping[str, Any]) -> str | None:
    found = next((facts[name] for name in _VALIDATORS if facts.get(name)), None)
    return None if found is None else f"{facts.get('size')}:{found!r}"


def ranged(url: str, options: Mapping[str, Any] | None = None) -> Ranged | None:
    """Return a remote source to be read by ranges; None where it is local, or its storage has no ranges.

    Raises FileNotFoundError and StorageError.
    """
    part = part_of(url)
    file = url if part is None else part.file
    if isinstance(part, TableRow) or is_local_filesystem(open_filesystem(file, options)[0]):
        return None
    facts = file_facts(file, options)
    validator, size = _validator(facts), facts.get("size")
    if validator is None or size is None or facts.get("partial") is False:
        return None
    offset = 0
    if isinstance(part, ByteRange):
        _check_end(part, size)
        offset, size = part.offset, part.size
    return Ranged(file=file, options=options, offset=offset, size=size, validator=validator)


class _Range(SeekableFile):
    """A range of a file, as a file. Reads are tried again, as those of remote files are."""

    def __init__(self, part: ByteRange, options: Mapping[str, Any] | None) -> None:
        super().__init__(part.size)
        self._part, self._options = part, options

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._part.size - self._position)
        if length <= 0:
            return 0
        start = self._part.offset + self._position
        data = read_range(self._part.file, start, start + length, self._options)
        memoryview(buffer)[:length] = data
        self._position += length
        return length
