"""Where contiguous parts of clips may begin, in one clip and in those that follow it. Pure.

Clips that follow one another are of one bucket: T pixel frames and t latent frames each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from latentcache.core.dtypes import Array
from latentcache.core.spec import LatentSpec


@dataclass(frozen=True, kw_only=True)
class Run:
    """What contiguous parts of clips a view takes.

    span: latent frames from a part's first to its last. goes_on: parts may end in the next clips of the
    same source. segment: the column per frame that has one value throughout a part; None for no such rule.
    is_asked_for: whether it was said that parts go on, or end with a segment.
    """

    span: int
    goes_on: bool
    segment: str | None
    is_asked_for: bool = True

    def num_next(self, num_frames: int) -> int:
        """Return how many clips, of so many latent frames each, a part may reach into after its own."""
        return -(-(self.span - 1) // num_frames) if self.goes_on else 0


def legal_starts(
    span: int, spec: LatentSpec, frames: int, num_clips: int, segments: Array | None
) -> npt.NDArray[np.bool_]:
    """Return at which latent frames of its own clip a part may begin, bool [N, t].

    frames: T. num_clips: the clip itself and those that follow. segments: [N, num_clips * T], the values
    per pixel frame; None if they do not matter, and N is 1.
    """
    t = spec.latent_frames(frames)
    starts = np.arange(t)
    inside = starts + span <= t * num_clips
    if segments is None:
        return inside[None]
    own = np.array([spec.pixel_frames(n, frames) for n in range(t)])
    ranges = np.concatenate([own + clip * frames for clip in range(num_clips)])
    changes = np.zeros(segments.shape, np.int64)
    np.cumsum(segments[:, 1:] != segments[:, :-1], axis=1, out=changes[:, 1:])
    last = np.minimum(starts + span, len(ranges)) - 1
    same = changes[:, ranges[starts, 0]] == changes[:, ranges[last, 1] - 1]
    return np.asarray(inside & same)


def by_clip(frames: Sequence[int], num_frames: int) -> list[tuple[int, list[int]]]:
    """Split latent frames that are counted from a clip's first one on, over it and those that follow.

    Returns pairs of a clip's number, from 0, and its own frames, in the order of the frames.
    """
    return [
        (clip, [frame - clip * num_frames for frame in some])
        for clip, some in groupby(frames, lambda frame: frame // num_frames)
    ]
