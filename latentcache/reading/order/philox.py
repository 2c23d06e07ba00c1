"""Random numbers by place: raw Philox words, which numpy keeps the same between versions.

numpy may change what its Generator makes of them, so orders are made from the words themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

#: Philox makes this many words from one value of its counter.
WORDS_A_COUNT = 4


class Words:
    """The random words of one purpose, by place; the key is (seed, epoch, cache, bucket, purpose).

    Purposes are 1 or more: numpy treats keys as equal if they differ only in zeros at the end.
    """

    def __init__(self, *key: int) -> None:
        self._key = np.random.SeedSequence(key).generate_state(2, np.uint64)

    def __call__(self, start: int, stop: int) -> UInt64:
        """Return words start..stop, 64 random bits each, whatever earlier calls asked for."""
        count, skip = divmod(start, WORDS_A_COUNT)
        philox = np.random.Philox(key=self._key, counter=count)
        return philox.random_raw(skip + stop - start)[skip:]

    def permutation(self, n: int) -> Int64:
        """Return the numbers 0..n-1 in random order."""
        return np.argsort(self(0, n), kind="stable")


def fractions(words: UInt64) -> tuple[Float64, Float64]:
    """Return two numbers in [0, 1) from each word: from its upper and from its lower 32 bits."""
    upper, lower = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    return upper.astype(np.float64) * 2.0**-32, lower.astype(np.float64) * 2.0**-32
