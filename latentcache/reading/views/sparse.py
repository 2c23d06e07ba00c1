"""Frames that a function draws, some to observe and some to generate: `Sparse`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latentcache.core.arguments import whole_number
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.reading.views.honest import check_middle
from latentcache.reading.views.protocol import Pick, Record

#: Given a clip's latent frames and a seeded generator: which are observed, and which are generated.
DrawFrames = Callable[[int, torch.Generator], tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Sparse:
    """At most `at_most` latent frames that `draw` chooses, filled up with zeros to as many.

    A batch: `latents` [B, C, at_most, h, w]; `frame_indices` [B, at_most], in the whole clip, 0 where it is
    filled up; `obs_mask` and `latent_mask`, float32 [B, at_most, 1, 1, 1], 0 or 1. draw must take its
    random numbers from the generator that it is given. middle: as of a Window.
    """

    draw: DrawFrames
    at_most: int
    middle: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "at_most", whole_number("Sparse: at_most", self.at_most, 1))
        if not callable(self.draw):
            raise ConfigError(
                f"Sparse: draw is {self.draw!r}. Give a function (num_frames, generator) that returns the "
                "observed frames and the frames to generate."
            )

    def check(self, spec: LatentSpec, buckets: Mapping[str, int]) -> None:
        """Raise ConfigError where frames have seen their neighbours."""
        cut = {name: num for name, num in buckets.items() if num > 1}
        check_middle(spec, "Sparse", prefix=False, allowed=self.middle, where=cut)

    def most_frames(self, num_frames: int) -> int:  # noqa: ARG002 - as views have it
        """Return the most frames."""
        return self.at_most

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        """Let the function choose. Raises ConfigError where it chooses none, or too many."""
        observed, generated = (list(map(int, some)) for some in self.draw(record.num_frames, draw))
        frames = [*observed, *generated]
        if not 0 < len(frames) <= self.at_most:
            raise ConfigError(
                f"Sparse: draw chose {len(frames)} frames of clip {record.key!r}; there must be 1 to "
                f"at_most={self.at_most}."
            )
        return Pick(frames=frames, facts={"observed": len(observed)})

    def make(
        self,
        record: Record,  # noqa: ARG002 - as views have it
        arrays: Mapping[str, torch.Tensor],
        pick: Pick,
    ) -> dict[str, Any]:
        """Return the frames, their places and what each is for."""
        latents, frames = arrays["latents"], list(pick.frames or ())
        lacking = self.at_most - len(frames)
        axis = latents.ndim - 3
        zeros = latents.new_zeros((*latents.shape[:axis], lacking, *latents.shape[axis + 1 :]))
        num, places = pick.facts["observed"], torch.arange(self.at_most).view(-1, 1, 1, 1)
        return {
            "latents": torch.cat([latents, zeros], dim=axis),
            "frame_indices": torch.tensor(frames + [0] * lacking),
            "obs_mask": (places < num).float(),
            "latent_mask": ((places >= num) & (places < len(frames))).float(),
        }

    def settings(self) -> Mapping[str, Any]:
        """Return its fields; of `draw` the name."""
        name = getattr(self.draw, "__qualname__", type(self.draw).__qualname__)
        return {"draw": name, "at_most": self.at_most, "middle": self.middle}
