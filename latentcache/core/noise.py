"""Normal noise by key, exact in every step: the same bits on every machine, and cheap to draw on loading.

The random words are those of Philox4x64-10, a counter-based generator (Salmon, Moraes, Dror, Shaw:
Parallel random numbers: as easy as 1, 2, 3. SC 2011), as numpy makes them, which keeps them between
versions. One word of 64 bits makes 16 values: each four of its bits choose one of 16 levels, and a
Hadamard matrix mixes these levels. The matrix is orthogonal, so values stay uncorrelated, as in Wallace's
method (Fast pseudorandom generators for normal and exponential variates. ACM TOMS 22, 1996).

The levels have the second and the fourth moment of the normal distribution. So values have its moments up
to the fifth, and its sixth and eighth within 0.1 and 0.4 %. Their distribution function is within 0.0001
of the normal one. Beyond 4 and 5 standard deviations lies 0.97 and 0.85 of what should. All sums are of
multiples of 2**-11 below 9, which float32 holds exactly: no step rounds, so order and device do not matter.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

#: The levels above zero, times 2**11; those below are their negatives. The mean of their squares is 2**18,
#: so that sums of 16 have variance 1 in units of 2**-11; that of their fourth powers is 3 * 2**36 but for
#: 4e-6 of it.
LEVELS = (34, 109, 184, 267, 360, 484, 665, 1083)
SCALE = 2.0**-11
#: Values that one word makes.
GROUP = 16
#: Words that Philox makes of one count.
BLOCK_WORDS = 4
#: Words that are taken at a time: what they make stays in a core's cache.
CHUNK_WORDS = 4096
#: Words that are mixed by one call of BLAS. OpenBLAS starts threads from 4 times as many on.
MIXED_WORDS = 512
#: Seeds are below this.
MAX_SEED = 1 << 64


def fill(out: Float32, seed: int, start: int = 0) -> None:
    """Fill a flat, contiguous float32 array with normal noise that depends only on the seed.

    start: the number of the first value, of those that the seed gives one after the other.
    Value 16 w + r is, times 2**-11, the sum over s of the level that bits 4 s to 4 s + 3 of word w
    choose, negative where r & s has an odd number of ones. Of 16 levels the last 8 are the negatives of
    the first. Raises ValueError where the seed is not at least 0 and below 2**64.
    """
    check_seed(seed)
    before = start % (GROUP * BLOCK_WORDS)
    if before:  # a block makes several words, and a word several values
        drawn = np.empty(before + len(out), np.float32)
        fill(drawn, seed, start - before)
        out[:] = drawn[before:]
        return
    philox = _philox(seed, start // (GROUP * BLOCK_WORDS))
    whole = len(out) - len(out) % GROUP
    for start in range(0, whole, CHUNK_WORDS * GROUP):
        part = out[start : min(start + CHUNK_WORDS * GROUP, whole)].reshape(-1, GROUP)
        _mix(_levels(philox, len(part)), part)
    if whole < len(out):
        last = np.empty((1, GROUP), np.float32)
        _mix(_levels(philox, 1), last)
        out[whole:] = last[0, : len(out) - whole]


def check_seed(seed: int) -> None:
    """Raise ValueError where a seed is not at least 0 and below 2**64."""
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"a seed of noise is at least 0 and below 2**64, not {seed}")


def _levels(philox: np.random.Philox, num: int) -> Float32:
    """Return the levels of the next words [num, 16], good until this thread asks for others."""
    words = philox.random_raw(num).astype("<u8", copy=False)
    levels = _of_thread.levels[:num]
    # Two levels at a time, as items of 64 bits. The indices cannot be out of range.
    np.take(_pairs(), words.view(np.uint8), out=levels.reshape(-1).view(np.int64), mode="clip")
    return levels


def _mix(levels: Float32, out: Float32) -> None:
    """Write the product of levels [num, 16] and the Hadamard matrix to `out`."""
    whole = len(levels) - len(levels) % MIXED_WORDS
    shape = (-1, MIXED_WORDS, GROUP)
    if whole:
        np.matmul(levels[:whole].reshape(shape), _hadamard(), out=out[:whole].reshape(shape))
    if whole < len(levels):
        np.matmul(levels[whole:], _hadamard(), out=out[whole:])


@functools.cache
def _hadamard() -> Float32:
    numbers = range(GROUP)
    return np.array([[(-1.0) ** (r & s).bit_count() for r in numbers] for s in numbers], np.float32)


@functools.cache
def _pairs() -> npt.NDArray[np.int64]:
    """Return the two float32 levels of each byte, that of its lower four bits first, as one item."""
    levels = np.array([*LEVELS, *(-level for level in LEVELS)], np.float32) * np.float32(SCALE)
    of_byte = np.array([[levels[n & 15], levels[n >> 4]] for n in range(256)], np.float32)
    return of_byte.view(np.int64).reshape(-1)


class _OfThread(threading.local):
    """What a thread computes with: to make a generator, or new memory, costs more than the sums."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)
        self.levels: Float32 = np.empty((CHUNK_WORDS, GROUP), np.float32)


_of_thread = _OfThread()


def _philox(seed: int, block: int) -> np.random.Philox:
    """Return this thread's generator before the first word of a block of a seed."""
    zeros, counter = np.zeros(4, np.uint64), np.array([block, 0, 0, 0], np.uint64)
    _of_thread.philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": np.array([seed, 0], np.uint64)},
        "buffer": zeros,
        "buffer_pos": len(zeros),
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _of_thread.philox
