"""What a view is: `pick` says which latent frames of a clip are read, `make` what is made of them.

Both are pure: the same record and the same draw give the same result, in any process. Axes: C channels,
t h w of the latent; n picked latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.reading.views.per_frame import per_frame


@dataclass(frozen=True, kw_only=True)
class Record:
    """A clip of which a sample is made, before its latents are read.

    number: which of the clip's samples it is, from 0. num_frames: its latent frames. read_column: gives
    the clip's value in a column of the sample table.
    """

    key: str
    bucket: Bucket
    number: int
    num_frames: int
    spec: LatentSpec
    read_column: Callable[[str], Any]

    def column(self, name: str) -> Any:
        """Return the clip's value in a column, such as `caption` or one that was kept from the corpus."""
        return self.read_column(name)

    def per_frame(self, name: str, frames: Sequence[int]) -> Any:
        """Return the values of a list with one entry per frame, at these latent frames.

        See `views.per_frame`. Raises ConfigError where the list's length is that of nothing.
        """
        return per_frame(self, name, frames)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What of a record to read. frames: latent frames, in the order in which `make` gets them.

    None: all. facts: whatever `make` needs to know.
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
