"""The shuffled order of a bucket's samples, by place: any part of it costs only one window's work.

Shards are laid end to end in random order. A sample goes to a random place within its shard, and from
there up to half a window to either side; at the ends, places are reflected. Samples are taken in the order
of their places. So every part of a shard comes within one window and a shard's length, and a batch draws
from all shards in the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentcache.reading.order.philox import Float64, Int64, Words, fractions

#: Samples sorted at a time if the window is smaller.
LEAST_BLOCK = 4096


class Sequence:
    """Samples of shards laid end to end, unshuffled: `starts`, int64 [n + 1], are their bounds."""

    def __init__(self, starts: Int64) -> None:
        self._starts = starts

    def take(self, start: int, stop: int) -> tuple[Int64, Int64]:
        """Return (shard, row) of the samples at start..stop of the order, up to its end."""
        return self._found(np.arange(start, min(stop, int(self._starts[-1]))))

    def _found(self, samples: Int64) -> tuple[Int64, Int64]:
        shards = np.searchsorted(self._starts, samples, side="right") - 1
        return shards, samples - self._starts[shards]


@dataclass(frozen=True)
class _Block:
    """Samples of the order, from place `start` on."""

    number: int
    start: int
    samples: Int64

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)


class Shuffled(Sequence):
    """Samples low..high of shards laid end to end, shuffled within a window.

    starts: bounds of the shards, none of them empty. window: in samples; with high - low or more, every
    order of the samples is equally likely. Holds a few numbers per shard and per sample of the window.
    """

    def __init__(self, starts: Int64, low: int, high: int, window: int, words: Words) -> None:
        super().__init__(starts)
        self._low, self._num, self._words = low, high - low, words
        first = int(np.searchsorted(starts, low, side="right")) - 1
        last = int(np.searchsorted(starts, high, side="left"))
        self._edges = np.clip(starts[first : last + 1], low, high) - low
        #: Twice the whole range: reflected at both ends it is uniform over the range.
        self._window = window if window < self._num else 2 * self._num
        self._block_size = max(window, LEAST_BLOCK)
        self._last = max(0, -(-self._num // self._block_size) - 1)
        self._block = self._make_block(0)

    def take(self, start: int, stop: int) -> tuple[Int64, Int64]:
        """Return (shard, row) of the samples at start..stop of the order, up to its end."""
        parts, stop = [], min(stop, self._num)
        while start < stop:
            block = self._block_of(start)
            parts.append(block.samples[start - block.start : stop - block.start])
            start = min(stop, block.stop)
        return self._found(np.concatenate(parts))

    def _block_of(self, place: int) -> _Block:
        block = self._block
        if not block.start <= place < block.stop:
            block = self._make_block(min(place // self._block_size, self._last))
        while place < block.start:
            block = self._make_block(block.number - 1)
        while place >= block.stop:
            block = self._make_block(block.number + 1)
        self._block = block
        return block

    def _make_block(self, number: int) -> _Block:
        """Sort the samples whose places are in the block's range."""
        low = number * self._block_size if number else -np.inf
        high = (number + 1) * self._block_size if number < self._last else np.inf
        # Shards that reach into the range: by half a window, or by one sample more because of rounding.
        reach = self._window / 2 + 1
        edges = self._edges
        first = max(0, int(np.searchsorted(edges, low - reach, side="right")) - 1)
        last = min(len(edges) - 1, int(np.searchsorted(edges, high + reach, side="left")))
        places = self._places(first, last)
        inside = np.flatnonzero((places >= low) & (places < high))
        samples = inside[np.argsort(places[inside], kind="stable")] + edges[first]
        before = int(edges[first]) + int(np.count_nonzero(places < low))
        return _Block(number, before, samples + self._low)

    def _places(self, first: int, last: int) -> Float64:
        """Return the place of each sample of shards first..last, in [0, num]."""
        edges = self._edges[first : last + 1]
        sizes = np.diff(edges)
        words = self._words(self._low + int(edges[0]), self._low + int(edges[-1]))
        shift, within = fractions(words)
        places = np.repeat(edges[:-1], sizes) + np.repeat(sizes, sizes) * within
        places += (shift - 0.5) * self._window
        places = np.abs(places)
        return np.where(places > self._num, 2 * self._num - places, places)
