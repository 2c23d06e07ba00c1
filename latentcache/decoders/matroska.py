"""Matroska and WebM by ranges: where the key frames are, and when the last frame is shown.

Nothing in such a file says how many frames it has, or when each is shown: every block has its own time.
But its cues say where to begin to read for any time, and its last blocks say when it ends.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from latentcache.decoders.ebml import CLUSTER, SEGMENT, TRACKS, Span, elements, find, number_at
from latentcache.decoders.ranged import NeedsWholeError

_EBML = 0x1A45DFA3
_CUES, _CUE, _CUE_TIME = 0x1C53BB6B, 0xBB, 0xB3
_CUE_PLACE, _CUE_TRACK, _CUE_CLUSTER = 0xB7, 0xF7, 0xF1
_TRACK, _TRACK_NUMBER, _TRACK_TYPE, _VIDEO = 0xAE, 0xD7, 0x83, 1
_TIME, _SIMPLE_BLOCK, _GROUP, _BLOCK, _DURATION = 0xE7, 0xA3, 0xA0, 0xA1, 0x9B
#: What clusters have in them beside blocks: their place, the size of the one before, and what is void.
_OTHER_CHILDREN = frozenset({_TIME, 0xA7, 0xAB, 0xEC, 0xBF})
#: Of a large cluster so much of its end is read, or the second if the first has too few pictures.
_TAIL_BYTES = (1 << 17, 1 << 19)
#: More cues than a day has seconds are damage.
_MAX_CUES = 100_000
#: So many take less, and a damaged length can say that the whole file is cues.
_MAX_CUES_BYTES = 1 << 24
_MAX_BLOCKS = 10_000
_LACING = 0x06


@dataclass(frozen=True, kw_only=True)
class Block:
    """A picture: when it is shown, and for how long if that is said, in the time base of its track."""

    pts: int
    duration: int | None


class Layout:
    """Where things are in a Matroska file of which any byte can be read. Raises NeedsWholeError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        size = file.seek(0, 2)
        top = list(elements(file, 0, size, stop_at=None, limit=2))
        if [identifier for identifier, *_ in top] != [_EBML, SEGMENT] or top[1][2] != size:
            raise NeedsWholeError
        _, self._start, self._end = top[1]
        self._tracks = [*self._video_tracks(self._find(TRACKS))]
        self._cues = self._read_cues(self._find(_CUES))

    def span(self, video: int, first: int, last: int) -> tuple[int, int]:
        """Return about which bytes the pictures of a span of time take, from the key frame before it."""
        times, places = self._cues_of(video)
        at = max(0, bisect.bisect_right(times, first) - 1)
        following = bisect.bisect_right(times, last)
        if following == len(times):
            return places[at], places[-1] if following - 1 > at else places[at]
        before, after = times[following - 1], times[following]
        part = (last - before) / max(1, after - before)
        return places[at], int(
            places[following - 1] + part * (places[following] - places[following - 1])
        )

    def last_blocks(self, video: int, count: int) -> list[Block]:
        """Return the last `count` pictures of a video track, in the order of decoding, or more."""
        _, places = self._cues_of(video)
        track, blocks = self._tracks[video], list[Block]()
        for start, end in reversed(self._clusters(places[-2:][0])):
            for tail in _TAIL_BYTES:
                found = [*self._blocks(track, start, end, tail), *blocks]
                if len(found) >= count:
                    return found
                if end - start <= tail:
                    break
            else:
                break
            blocks = found
        raise NeedsWholeError

    def _find(self, wanted: int) -> Span:
        """Return where the body of an element of the segment is."""
        found = find(self._file, (self._start, self._end), wanted)
        if found is None:
            raise NeedsWholeError
        return found

    def _video_tracks(self, tracks: Span) -> Iterator[int]:
        """Yield the numbers of the video tracks, as FFmpeg has them."""
        for kind, start, end in elements(self._file, *tracks):
            fields = {k: (a, b) for k, a, b in elements(self._file, start, end)}
            if kind == _TRACK and number_at(self._file, fields.get(_TRACK_TYPE)) == _VIDEO:
                yield number_at(self._file, fields.get(_TRACK_NUMBER))

    def _cues_of(self, video: int) -> tuple[list[int], list[int]]:
        if video >= len(self._tracks) or not (cues := self._cues.get(self._tracks[video])):
            raise NeedsWholeError
        places = [place for _, place in cues]
        if places != sorted(places):  # recordings that were joined: their times begin again
            raise NeedsWholeError
        return [time for time, _ in cues], places

    def _read_cues(self, span: Span) -> dict[int, list[tuple[int, int]]]:
        """Return by track when key frames are shown, and where their clusters are."""
        start, end = span
        if end - start > _MAX_CUES_BYTES:
            raise NeedsWholeError
        self._file.seek(start)
        data = io.BytesIO(self._file.read(end - start))
        cues: dict[int, list[tuple[int, int]]] = {}
        for kind, first, last in elements(data, 0, end - start, limit=_MAX_CUES):
            if kind != _CUE:
                continue
            cue = list(elements(data, first, last))
            time = next((number_at(data, (a, b)) for k, a, b in cue if k == _CUE_TIME), 0)
            for _, a, b in (each for each in cue if each[0] == _CUE_PLACE):
                place = {k: number_at(data, (c, d)) for k, c, d in elements(data, a, b)}
                at = self._start + place.get(_CUE_CLUSTER, 0)
                cues.setdefault(place.get(_CUE_TRACK, 0), []).append((time, at))
        return {track: sorted(each) for track, each in cues.items()}

    def _clusters(self, start: int) -> list[tuple[int, int]]:
        """Return the bodies of the clusters from one on."""
        found = elements(self._file, start, self._end, stop_at=None)
        clusters = [(a, b) for kind, a, b in found if kind == CLUSTER]
        if not clusters:
            raise NeedsWholeError
        return clusters

    def _blocks(self, track: int, start: int, end: int, tail: int) -> list[Block]:
        """Return a track's blocks in the last so many bytes of a cluster."""
        head = {k: (a, b) for k, a, b in elements(self._file, start, end, limit=3)}
        if _TIME not in head:
            raise NeedsWholeError
        time, first = number_at(self._file, head[_TIME]), max(start, end - tail)
        self._file.seek(first)
        data = self._file.read(end - first)
        children = _children(data) if first == start else _last_children(data)
        blocks = (_block(data, child, track, time) for child in children)
        return [block for block in blocks if block is not None]


def _children(data: bytes, at: int = 0) -> list[tuple[int, int, int]]:
    """Return a cluster's children from one on; none where they do not end with the cluster."""
    found = list(elements(io.BytesIO(data), at, len(data), limit=_MAX_BLOCKS, is_cut=False))
    known = all(kind in (_SIMPLE_BLOCK, _GROUP) or kind in _OTHER_CHILDREN for kind, *_ in found)
    return found if found and known and found[-1][2] == len(data) else []


def _last_children(data: bytes) -> list[tuple[int, int, int]]:
    """Return the children at the end of a cluster that begins before.

    A chain of sizes that ends with the cluster, byte for byte, is no chance but for its first link.
    """
    at = -1
    while (at := _next_block(data, at + 1)) >= 0:
        if len(chain := _children(data, at)) > 1:
            return chain[1:]
    return []


def _next_block(data: bytes, at: int) -> int:
    found = [data.find(bytes([kind]), at) for kind in (_SIMPLE_BLOCK, _GROUP)]
    return min((place for place in found if place >= 0), default=-1)


def _block(data: bytes, child: tuple[int, int, int], track: int, time: int) -> Block | None:
    """Return the picture of a cluster's child; None if it is none of this track."""
    kind, start, end = child
    duration = None
    if kind == _GROUP:
        inner = {k: (a, b) for k, a, b in elements(io.BytesIO(data), start, end)}
        if _DURATION in inner:
            duration = number_at(io.BytesIO(data), inner[_DURATION])
        start, end = inner.get(_BLOCK, (0, 0))
    elif kind != _SIMPLE_BLOCK:
        return None
    width = 9 - data[start].bit_length() if start < end else 9
    if end - start < width + 3 or width > 8:
        return None
    number = int.from_bytes(data[start : start + width]) - (1 << 7 * width)
    if number != track:
        return None
    start += width
    if data[start + 2] & _LACING:
        raise NeedsWholeError
    return Block(pts=time + int.from_bytes(data[start : start + 2], signed=True), duration=duration)
