"""Whose turn it is: several sequences interleaved in proportion to their lengths, by place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from latentcache.reading.order.philox import Float64, Int64, Words, fractions

#: Turns sorted at a time.
CHUNK = 4096


class Turns(Protocol):
    """`len(counts)` sequences as one of `sum(counts)` turns."""

    def __call__(self, place: int) -> tuple[int, int]:
        """Return the sequence that has the turn at `place`, and the turn's number within that sequence."""
        ...


class OneByOne:
    """The sequences one after the other."""

    def __init__(self, counts: Int64) -> None:
        self._ends = np.cumsum(counts)

    def __call__(self, place: int) -> tuple[int, int]:
        """Return (sequence, number of the turn within it)."""
        sequence = int(np.searchsorted(self._ends, place, side="right"))
        return sequence, place - (int(self._ends[sequence - 1]) if sequence else 0)


@dataclass(frozen=True)
class _Chunk:
    """Turns from place `start` on."""

    number: int
    start: int
    sequences: Int64
    turns: Int64

    @property
    def stop(self) -> int:
        return self.start + len(self.turns)


class Interleaved:
    """In proportion at any place: turn k of a sequence's n comes at a random time in [k/n, (k+1)/n).

    After any number of turns a sequence has had its share of them, give or take as many turns as
    there are sequences.
    """

    def __init__(self, counts: Int64, words: Words) -> None:
        self._counts, self._words = counts, words
        self._first_words = np.cumsum(counts) - counts
        self._total = int(counts.sum())
        self._num_chunks = max(1, -(-self._total // CHUNK))
        self._chunk = self._make_chunk(0)

    def __call__(self, place: int) -> tuple[int, int]:
        """Return (sequence, number of the turn within it)."""
        chunk = self._chunk_of(place)
        n = place - chunk.start
        return int(chunk.sequences[n]), int(chunk.turns[n])

    def _chunk_of(self, place: int) -> _Chunk:
        chunk = self._chunk
        if not chunk.start <= place < chunk.stop:
            chunk = self._make_chunk(place * self._num_chunks // self._total)
        while place < chunk.start:
            chunk = self._make_chunk(chunk.number - 1)
        while place >= chunk.stop:
            chunk = self._make_chunk(chunk.number + 1)
        self._chunk = chunk
        return chunk

    def _make_chunk(self, number: int) -> _Chunk:
        """Sort the turns of one part of the time."""
        starts, stops = self._num_before(number), self._num_before(number + 1)
        bounds = list(zip(starts.tolist(), stops.tolist(), strict=True))
        times = np.concatenate([self._times(n, *bound) for n, bound in enumerate(bounds)])
        sequences = np.repeat(np.arange(len(bounds)), stops - starts)
        turns = np.concatenate([np.arange(*bound) for bound in bounds])
        order = np.argsort(times, kind="stable")
        return _Chunk(number, int(starts.sum()), sequences[order], turns[order])

    def _num_before(self, number: int) -> Int64:
        """Return how many turns each sequence has had when a chunk begins."""
        if number >= self._num_chunks:
            return self._counts
        time = number / self._num_chunks
        # Rounding: one turn on either side of the expected one.
        lows = np.clip((time * self._counts).astype(np.int64) - 1, 0, None)
        highs = np.minimum(lows + 3, self._counts)
        near = zip(lows.tolist(), highs.tolist(), strict=True)
        more = [np.count_nonzero(self._times(n, *bound) < time) for n, bound in enumerate(near)]
        return lows + np.array(more, np.int64)

    def _times(self, sequence: int, start: int, stop: int) -> Float64:
        if stop <= start:
            return np.empty(0)
        first = int(self._first_words[sequence])
        upper, _ = fractions(self._words(first + start, first + stop))
        times: Float64 = (np.arange(start, stop) + upper) / self._counts[sequence]
        return times
