"""EBML, which Matroska and WebM are written in: its elements, found by their headers alone.

What is in an element is skipped by its size, so a look for one reads little, wherever in a file it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

SEGMENT, CLUSTER, TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
_SEEK_HEAD, _SEEK, _SEEK_ID, _SEEK_POSITION = 0x114D9B74, 0x4DBB, 0x53AB, 0x53AC
#: Elements that are looked at, at most, in one place: damage can make any number.
_MAX_ELEMENTS = 1000
#: Seek heads may name further ones; files have two at most.
_MAX_SEEK_HEADS = 8

#: Where the body of an element begins and ends.
Span = tuple[int, int]


def elements(
    file: IO[bytes],
    start: int,
    end: int,
    *,
    stop_at: int | None = CLUSTER,
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


def segment_of(file: IO[bytes]) -> Span | None:
    """Return the first segment of a file, None if there is none."""
    found = elements(file, 0, file.seek(0, 2), stop_at=None)
    return next(((a, b) for kind, a, b in found if kind == SEGMENT), None)


def find(file: IO[bytes], segment: Span, wanted: int) -> Span | None:
    """Return the first element of a kind in a segment, where FFmpeg finds it.

    It stands before the first cluster, or a seek head names its place, which can be the end of the file.
    """
    heads: list[Span] = []
    for kind, start, end in elements(file, *segment):
        if kind == wanted:
            return start, end
        if kind == _SEEK_HEAD:
            heads.append((start, end))
    for head in heads:  # which grows
        for kind, span in _named(file, segment, head, (wanted, _SEEK_HEAD)):
            if kind == wanted:
                return span
            if span not in heads and len(heads) < _MAX_SEEK_HEADS:
                heads.append(span)
    return None


def _named(
    file: IO[bytes], segment: Span, head: Span, kinds: tuple[int, ...]
) -> Iterator[tuple[int, Span]]:
    """Yield the elements of some kinds that a seek head names, where they are."""
    for kind, *seek in elements(file, *head):
        if kind != _SEEK:
            continue
        fields = {k: number_at(file, (a, b)) for k, a, b in elements(file, seek[0], seek[1])}
        if fields.get(_SEEK_ID) not in kinds:
            continue
        at = segment[0] + fields.get(_SEEK_POSITION, 0)
        for found, start, end in elements(file, at, segment[1], limit=1):
            if found == fields[_SEEK_ID]:
                yield found, (start, end)


def number_at(file: IO[bytes], at: Span | None) -> int:
    """Return the whole number that an element holds; 0 where there is none."""
    return 0 if at is None else int.from_bytes(_read(file, at[0], max(0, min(8, at[1] - at[0]))))


def _read(file: IO[bytes], start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
