"""Sampling by counting frames, as trainers do: which frames of a source the sampled ones are."""

from __future__ import annotations

import functools
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from latentcache.decoders.frames import nearest_frames
from latentcache.errors import ClipError

Indices = npt.NDArray[np.int64]
Counting = Literal["accumulate", "floor", "linspace"]
#: Frames of a source that are looked at, and sampled, at most (19 hours at 60 per second): a header may
#: claim any number.
MAX_FRAMES = 1 << 22


@functools.lru_cache(maxsize=1)  # planned and decoded clip after clip, for one source at a time
def sampled_frames(sampling: Counting, frames: int, source_fps: float, fps: float) -> Indices:
    """Return which of a source's frames are sampled, ascending, as an array that cannot be written to.

    accumulate: a frame is dropped where fps / source_fps, added up, gives the whole number of the frame
    before (musubi-tuner). floor: every source_fps / fps frames, rounded down (FastVideo). linspace:
    int(frames * fps / source_fps) of them, evenly from the first to the last (diffusion-pipe).
    """
    found = _sampled(sampling, min(frames, MAX_FRAMES), source_fps, fps)
    found.setflags(write=False)  # it is kept for the next clip of the source
    return found


def _sampled(sampling: Counting, frames: int, source_fps: float, fps: float) -> Indices:
    if frames == 0:
        return np.zeros(0, np.int64)
    if sampling == "accumulate":
        # One after the other, as they add up.
        sums = np.cumsum(np.full(frames - 1, fps / source_fps))
        numbers = np.concatenate([[0.0], sums]).astype(np.int64)
        return np.flatnonzero(np.diff(numbers, prepend=-1)).astype(np.int64)
    if sampling == "floor":
        step = max(source_fps / fps, frames / MAX_FRAMES)
        return np.arange(0, frames, step).astype(np.int64).clip(0, frames - 1)
    return _spread(frames, min(MAX_FRAMES, int(frames * fps / source_fps)))


def clip_frames(
    sampling: str,
    times_s: npt.NDArray[np.float64],
    duration_s: float | None,
    start: int,
    count: int,
    fps: float | None,
    source_fps: float | None,
) -> Indices:
    """Return the source's frames of a clip of `count` sampled frames from `start` on.

    sampling: as in `clips`. times_s: of the source's frames; duration_s: until the last one ends. fps: None
    of images and where every frame is sampled. source_fps: the source's rate, None of images. Raises
    ClipError("truncated") where a rule that counts finds too few; "nearest" takes the source for long
    enough.
    """
    available = len(times_s)
    if sampling == "spread":
        return spread_frames(available, count)
    if sampling == "nearest" or fps is None or not duration_s:  # an image has no rate
        return nearest_frames(times_s, start, count, fps)
    assert source_fps is not None
    return counted_frames(cast("Counting", sampling), available, source_fps, fps, start, count)


def spread_frames(frames: int, count: int) -> Indices:
    """Return `count` frames spread evenly over a source, from its first to its last (finetrainers).

    Raises ClipError("truncated") if there are fewer.
    """
    if count > frames:
        raise ClipError("truncated", f"the clip needs {count} frames, and the file has {frames}")
    return _spread(frames, count)


def _spread(frames: int, count: int) -> Indices:
    import torch  # whose linspace adds up in its own order

    return torch.linspace(0, frames - 1, count).long().numpy()


def counted_frames(
    sampling: Counting, frames: int, source_fps: float, fps: float, start: int, count: int
) -> Indices:
    """Return the source's frames of a clip of `count` sampled frames from `start` on.

    Raises ClipError("truncated") if the source ends before.
    """
    sampled = sampled_frames(sampling, frames, source_fps, fps)
    if start + count > len(sampled):
        raise ClipError(
            "truncated",
            f"the clip needs sampled frames {start} to {start + count}, and the file has {len(sampled)}",
        )
    return sampled[start : start + count]
