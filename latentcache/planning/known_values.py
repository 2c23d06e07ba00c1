"""Values per frame of sources that a cache knows: which of a corpus's fit the frames of their clips."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.clips import ClipsConfig
from latentcache.core.columns import taken
from latentcache.core.names import NameIndex, Rows
from latentcache.errors import CorpusError
from latentcache.format.per_frame import (
    FRAME,
    OF,
    PER_FRAME,
    names_in,
    problem,
    vector_widths,
)
from latentcache.planning.known import KnownCache
from latentcache.planning.masks import no_names

#: Sources of which it is said why they stay as they are.
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class KnownValues:
    """What a cache knows of values per frame.

    widths: how many numbers the vectors of a column have. uncounted: sources of the corpus that must be
    opened, for the cache has no values of them, and nobody has noted how many frames they have.
    """

    widths: dict[str, int] = field(default_factory=dict)
    uncounted: pa.ChunkedArray = field(default_factory=no_names)


def known_values(known: KnownCache, corpus: pa.Table, clips: ClipsConfig) -> KnownValues:
    """Return what is known of a corpus's values. Raises CorpusError where none can be cut to any clip."""
    if PER_FRAME not in corpus.column_names or not known.sources:
        return KnownValues()
    widths: dict[str, int] = {}
    names: list[pa.Array] = []
    has_any = is_lost = False
    for group in known.looked_up(NameIndex(corpus["name"])):
        has_any |= bool(names_in(group.rows.schema))
        _add_widths(widths, group.rows)
        lacking = (group.at >= 0) & np.array([n is None for n in _noted(group.rows, OF)], bool)
        rows = group.rows.filter(pa.array(lacking))
        can_be_cut = [numbers is not None for numbers in frame_numbers(rows, clips)]
        is_lost |= not all(can_be_cut)
        names.append(pc.unique(rows["source"].filter(pa.array(can_be_cut, pa.bool_()))))
    if is_lost and not has_any:
        raise CorpusError(
            "corpus.per_frame: the cache was planned without columns per frame, and with clips.fps or "
            "clips.sampling, so that nobody knows any more which frames its clips are of. Nothing was "
            "changed. Make a new cache, or leave corpus.per_frame out."
        )
    return KnownValues(widths=widths, uncounted=pa.chunked_array(names, pa.string()))


def known_widths(known: KnownCache) -> dict[str, int]:
    """Return how many numbers the vectors of a cache's columns per frame have."""
    widths: dict[str, int] = {}
    for _, rows in known.shards():
        _add_widths(widths, rows)
    return widths


def _add_widths(widths: dict[str, int], rows: pa.Table) -> None:
    for name, numbers in vector_widths(rows).items():
        widths.setdefault(name, numbers[0])


def frame_numbers(rows: pa.Table, clips: ClipsConfig) -> list[list[int] | None]:
    """Return which frames of their sources clips are of; None where nobody knows it any more."""
    in_a_row = clips.fps is None and clips.sampling != "spread"
    found: list[list[int] | None] = []
    places = rows.select(["kind", "start", "frames"]).to_pylist()
    for numbers, row in zip(_noted(rows, FRAME), places, strict=True):
        if numbers is None and (in_a_row or row["kind"] == "image"):
            numbers = [*range(row["start"], row["start"] + row["frames"])]
        found.append(numbers)
    return found


def _noted(rows: pa.Table, name: str) -> list[Any]:
    if not names_in(rows.schema):
        return [None] * rows.num_rows
    return pc.struct_field(rows[PER_FRAME], name).to_pylist()  # type: ignore[no-any-return]


class Fitting:
    """Tells which values of a corpus are those of the sources that the cache knows.

    widths: of vectors that are known. counted: probed sources, where a cache has not noted how many frames
    they have. misfits: rows of the corpus whose values do not fit; why: what is wrong with a few, by name.
    """

    def __init__(
        self, corpus: pa.Table, clips: ClipsConfig, widths: dict[str, int], counted: pa.Table
    ) -> None:
        self.clips = clips
        self._corpus, self._widths, self._counted = corpus, widths, counted
        self.misfits = np.zeros(corpus.num_rows, bool)
        self.why: dict[str, str] = {}

    def fitting(self, rows: pa.Table, at: Rows) -> Rows:
        """Return which rows of the corpus the sources of clips are; -1 as well where values do not fit."""
        if PER_FRAME not in self._corpus.column_names:
            return at
        numbers, frames = frame_numbers(rows, self.clips), self._frames(rows)
        sources, first = np.unique(at, return_index=True)
        for row, clip in zip(sources.tolist(), first.tolist(), strict=True):
            if row >= 0 and (why := self._problem(row, numbers[clip], frames[clip])):
                self.misfits[row] = True
                if len(self.why) < NAMED:
                    self.why[self._corpus["name"][row].as_py()] = why
        return np.where((at >= 0) & ~self.misfits[at], at, -1)

    @functools.cached_property
    def _index(self) -> NameIndex:
        return NameIndex(self._counted["name"])

    def _frames(self, rows: pa.Table) -> list[int]:
        """Return how many frames the sources of clips have; -1 where it is not known."""
        counted = taken(self._counted["frames"], self._index.find(rows["source"])).to_pylist()
        both = zip(_noted(rows, OF), counted, strict=True)
        return [next((n for n in numbers if n is not None), -1) for numbers in both]

    def _problem(self, row: int, numbers: list[int] | None, frames: int) -> str | None:
        if numbers is None:
            return "its clips were planned without columns per frame, so nobody knows their frames"
        wrong = problem(self._corpus[PER_FRAME][row], frames, self._widths)
        return wrong[1] if wrong else None
