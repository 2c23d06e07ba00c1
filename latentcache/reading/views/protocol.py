"""What a view is: `pick` says which latent frames of a clip are read, `make` what is made of them.

Both are pure: the same record and the same draw give the same result, in any process. Axes: C channels,
t h w of the latent; n picked latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.reading.views.per_frame import per_frame
from latentcache.reading.views.starts import Run, legal_starts


@dataclass(frozen=True, kw_only=True)
class Record:
    """A clip of which a sample is made, before its latents are read.

    number: which of the clip's samples it is, from 0. num_frames: its latent frames. read_column: gives
    the clip's value in a column of the sample table. following: the next clips of its source, of the same
    bucket, as far as a sample may reach into them. run: what contiguous parts the view takes, if any.
    sampling: as in `clips`; it says which frames of its source a clip has.
    """

    key: str
    bucket: Bucket
    number: int
    num_frames: int
    spec: LatentSpec
    read_column: Callable[[str], Any]
    following: tuple[Record, ...] = ()
    run: Run | None = None
    sampling: str = "nearest"

    def starts(self, span: int) -> Sequence[int]:
        """Return the latent frames of this clip at which a part of `span` may begin, ascending."""
        if self.run is None:
            return range(self.num_frames - span + 1)
        clips = (self, *self.following)
        segments = None
        if self.run.segment is not None:
            values = [clip.column(self.run.segment) for clip in clips]
            segments = torch.cat(values).numpy()[None]
        legal = legal_starts(span, self.spec, self.bucket.frames, len(clips), segments)
        return np.flatnonzero(legal[0]).tolist()

    def column(self, name: str) -> Any:
        """Return the clip's value in a column, such as `caption` or one that was kept from the corpus."""
        return self.read_column(name)

    def per_frame(self, name: str, frames: Sequence[int]) -> Any:
        """Return the values of a list with one entry per frame, at these latent frames.

        Frames from num_frames on are of the clips that follow. See `views.per_frame`. Raises ConfigError
        where the list's length is that of nothing.
        """
        return per_frame(self, name, frames)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What of a record to read. frames: latent frames, in the order in which `make` gets them.

    None: all. Of a view with `run`, frames from the clip's num_frames on are of the clips that follow.
    facts: whatever `make` needs to know.
    """

    frames: Sequence[int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class View(Protocol):
    """A view. One of your own may leave out all but `make`; a plain function is a `make`."""

    def check(self, spec: LatentSpec, buckets: Mapping[str, int]) -> None:
        """Raise ConfigError where the view makes no sense of a cache.

        buckets: those that are read, with their latent frames.
        """
        ...

    def count(self, num_frames: int) -> int:
        """Return how many samples each clip of so many latent frames gives in an epoch."""
        ...

    def most_frames(self, num_frames: int) -> int:
        """Return the most latent frames that a sample has; memory is planned by it."""
        ...

    def run(self, cache: Any) -> Run | None:
        """Return what contiguous parts of a `Cache`'s clips it takes, if clips give them in other numbers.

        They do if parts go on in the next clips, or end with a segment. None: `count` counts.
        """
        ...

    def counts(self, legal: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return how many samples clips give, of a `run`, by where parts may begin in each, [N, t]."""
        ...

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        """Choose what to read. draw: seeded by (seed, epoch, key, number) only."""
        ...

    def make(
        self, record: Record, arrays: Mapping[str, torch.Tensor], pick: Pick
    ) -> Mapping[str, Any]:
        """Return what a batch has of this sample; tensors of one name are stacked, all else is listed.

        arrays: `latents` [C, n, h, w] as a loader gives them (ids: [n, h, w]), which may be changed.
        """
        ...

    def settings(self) -> Mapping[str, Any]:
        """Return what makes it another view, as JSON values; they are part of a loader's state."""
        ...
