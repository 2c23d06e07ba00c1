"""How often clips of unequal weights come in an epoch. Arrays in, arrays out.

A clip of weight 2.5 comes twice or three times. After any number of epochs n it has come n * 2.5 times,
give or take less than one: the fractions add up, each clip's from a random start, so that about as many
clips come in every epoch. Weights count to 1 / 2^32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentcache.reading.order.philox import Float64, Int64

UInt32 = npt.NDArray[np.uint32]
#: Fractions of weights are in units of 1 / 2^32.
_BITS = 32


class Repeats:
    """The clips of a bucket, in their order. Holds 12 bytes per clip.

    weights: from 0 to core.records.MAX_WEIGHT. phases: uint32, random.
    """

    def __init__(self, weights: Float64, phases: UInt32) -> None:
        units = np.rint(np.asarray(weights, np.float64) * 2.0**_BITS).astype(np.uint64)
        self._whole = (units >> np.uint64(_BITS)).astype(np.uint32)
        self._parts = units.astype(np.uint32)  # the lower bits
        self._phases = phases

    def __len__(self) -> int:
        return len(self._whole)

    def before(self, epoch: int, start: int = 0, stop: int | None = None) -> Int64:
        """Return how often each of clips start..stop has come in the epochs before one, int64."""
        at = slice(start, stop)
        fractions = self._parts[at].astype(np.uint64) * np.uint64(epoch) + self._phases[at]
        whole = self._whole[at].astype(np.int64) * epoch
        return whole + (fractions >> np.uint64(_BITS)).astype(np.int64)

    def counts(self, epoch: int, start: int = 0, stop: int | None = None) -> Int64:
        """Return how often each of clips start..stop comes in an epoch, int64."""
        return self.before(epoch + 1, start, stop) - self.before(epoch, start, stop)

    def sums(self, epoch: int, starts: Int64) -> Int64:
        """Return how many samples the clips starts[i]..starts[i + 1] give in an epoch, int64."""
        ends = np.concatenate([[0], np.cumsum(self.counts(epoch))])
        return np.diff(ends[starts])

    def mean_sums(self, starts: Int64) -> Int64:
        """Return about how many they give in a mean epoch; in all at least 1 if any clip ever comes."""
        weights = self._whole.astype(np.float64) + self._parts / 2.0**_BITS
        ends = np.concatenate([[0.0], np.cumsum(weights)])[starts]
        sums: Int64 = np.diff(np.rint(ends).astype(np.int64))
        if ends[-1] > 0 and not sums.any():
            sums[int(np.argmax(np.diff(ends)))] = 1
        return sums

    def samples(self, epoch: int, start: int, stop: int, numbers: Int64) -> tuple[Int64, Int64]:
        """Return, of samples of clips start..stop by their number: the clip, from `start` on, and a visit.

        visit: how often the clip has come before, in all epochs; with weight 1 the epoch's own number.
        """
        counts = self.counts(epoch, start, stop)
        ends = np.cumsum(counts)
        clips = np.searchsorted(ends, numbers, side="right")
        copies = numbers - (ends - counts)[clips]
        return clips, self.before(epoch, start, stop)[clips] + copies
