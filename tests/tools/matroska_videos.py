"""Matroska files whose tracks stand elsewhere: what programs that edit a header in place make of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SEGMENT, SEEK_HEAD, SEEK, TRACKS, CUES, VOID = (
    bytes.fromhex(name) for name in ("18538067", "114d9b74", "4dbb", "1654ae6b", "1c53bb6b", "ec")
)
SEEK_ID, SEEK_POSITION = b"\x53\xab", b"\x53\xac"


class Element(NamedTuple):
    """An element of a file: where it starts, and where its body does and ends."""

    kind: bytes
    start: int
    body: int
    end: int


def children(data: bytes, at: int, end: int) -> Iterator[Element]:
    """Yield the elements between two offsets; one of unknown size ends with them."""
    while at < end:
        width = 9 - data[at].bit_length()
        length = 9 - data[at + width].bit_length()
        body = at + width + length
        size = int.from_bytes(data[at + width : body]) - (1 << 7 * length)
        stop = end if size == (1 << 7 * length) - 1 else body + size
        yield Element(data[at : at + width], at, body, stop)
        at = stop


def element(kind: bytes, body: bytes, size_bytes: int = 8) -> bytes:
    """Write an element, its size in so many bytes."""
    return kind + (len(body) | 1 << 7 * size_bytes).to_bytes(size_bytes) + body


def void(num_bytes: int) -> bytes:
    """Write an element that is void, of so many bytes in all."""
    return element(VOID, bytes(num_bytes - 9))


def _segment(data: bytes) -> tuple[Element, list[Element]]:
    (segment,) = (each for each in children(data, 0, len(data)) if each.kind == SEGMENT)
    return segment, list(children(data, segment.body, segment.end))


def _resized(data: bytes, segment: Element, body: bytes) -> bytes:
    return data[: segment.start] + element(SEGMENT, body)


def tracks_at_the_end(path: Path, through: int = 1) -> Path:
    """Move the tracks behind the clusters, as mkvpropedit does, and name their place in a seek head.

    through: so many seek heads, of which each but the last one names only the next one.
    """
    data = path.read_bytes()
    segment, parts = _segment(data)
    (tracks,) = (part for part in parts if part.kind == TRACKS)
    head, free = parts[:2]
    assert (head.kind, free.kind, segment.body - segment.start) == (SEEK_HEAD, VOID, 12)
    moved = len(data) - segment.body
    places = {kind: at for kind, at in _places(data, head) if kind != TRACKS} | {TRACKS: moved}
    body = bytearray(data[segment.body :] + data[tracks.start : tracks.end])
    start, size = tracks.start - segment.body, tracks.end - tracks.start
    body[start : start + size] = void(size)
    for _ in range(through - 1):
        named = len(body)
        body += _seek_head(places)
        places = {SEEK_HEAD: named}
    first = _seek_head(places)
    room = free.end - head.start
    body[:room] = first + void(room - len(first))
    path.write_bytes(_resized(data, segment, bytes(body)))
    return path


def _places(data: bytes, head: Element) -> Iterator[tuple[bytes, int]]:
    for seek in children(data, head.body, head.end):
        if seek.kind == SEEK:
            fields = {e.kind: data[e.body : e.end] for e in children(data, seek.body, seek.end)}
            yield fields[SEEK_ID], int.from_bytes(fields[SEEK_POSITION])


def _seek_head(places: dict[bytes, int]) -> bytes:
    seeks = (
        element(SEEK, element(SEEK_ID, kind, 1) + element(SEEK_POSITION, at.to_bytes(8), 1), 1)
        for kind, at in places.items()
    )
    return element(SEEK_HEAD, b"".join(seeks))


def before_tracks(path: Path, extra: bytes) -> Path:
    """Put something in front of the tracks; what names places is left out."""
    data = path.read_bytes()
    segment, parts = _segment(data)
    kept = [part for part in parts if part.kind not in (SEEK_HEAD, CUES)]
    body = b"".join(extra * (part.kind == TRACKS) + data[part.start : part.end] for part in kept)
    path.write_bytes(_resized(data, segment, body))
    return path
