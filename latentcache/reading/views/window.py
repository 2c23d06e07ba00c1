"""A contiguous part of each clip: `Window`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from latentcache.core.arguments import whole_number
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.reading.views.honest import check_long_enough, check_middle
from latentcache.reading.views.protocol import Pick, Record

Start = Literal["random", "first", "all"]


@dataclass(frozen=True)
class Window:
    """`frames` latent frames, every `step`-th, from a start: `latents`, and `frame_indices` [B, n].

    start: "random" draws `per_clip` starts for each clip and epoch; "first" takes the clip's first frames;
    "all" takes every start once per epoch. per_frame: columns with an entry per frame, which are cut
    alike. middle: take parts of clips even if the encoder's latents have seen frames outside them.
    """

    frames: int
    step: int = 1
    start: Start = "random"
    per_clip: int = 1
    middle: bool = False
    per_frame: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("frames", "step", "per_clip"):
            object.__setattr__(self, name, whole_number(f"Window: {name}", getattr(self, name), 1))
        names = (self.per_frame,) if isinstance(self.per_frame, str) else tuple(self.per_frame)
        object.__setattr__(self, "per_frame", names)
        if self.start not in get_args(Start):
            raise ConfigError(
                f"Window: start {self.start!r} is not one of {', '.join(get_args(Start))}"
            )
        if self.per_clip > 1 and self.start != "random":
            raise ConfigError(
                f'Window: per_clip {self.per_clip} draws several starts, and start="{self.start}" draws '
                'none. Leave per_clip out, or use start="random".'
            )

    @property
    def span(self) -> int:
        """Latent frames from the first one of a window to its last."""
        return (self.frames - 1) * self.step + 1

    def check(self, spec: LatentSpec, buckets: Mapping[str, int]) -> None:
        """Raise ConfigError where clips are too short or their middles are not to be had."""
        check_long_enough("Window", self.span, buckets)
        cut = {name: num for name, num in buckets.items() if num > self.frames}
        prefix = self.start == "first" and self.step == 1
        check_middle(spec, "Window", prefix=prefix, allowed=self.middle, where=cut)

    def count(self, num_frames: int) -> int:
        """Return the samples per clip."""
        return num_frames - self.span + 1 if self.start == "all" else self.per_clip

    def most_frames(self, num_frames: int) -> int:  # noqa: ARG002 - as views have it
        """Return the window's frames."""
        return self.frames

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        """Choose the window of a sample."""
        start = {"first": 0, "all": record.number}.get(self.start)
        if start is None:
            num_starts = record.num_frames - self.span + 1
            start = int(torch.randint(num_starts, (), generator=draw))
        return Pick(frames=range(start, start + self.span, self.step))

    def make(
        self, record: Record, arrays: Mapping[str, torch.Tensor], pick: Pick
    ) -> dict[str, Any]:
        """Return the window and its place."""
        frames = list(pick.frames or ())
        columns = {name: record.per_frame(name, frames) for name in self.per_frame}
        return {"latents": arrays["latents"], "frame_indices": torch.tensor(frames), **columns}

    def settings(self) -> Mapping[str, Any]:
        """Return its fields."""
        return {**dataclasses.asdict(self), "per_frame": list(self.per_frame)}
