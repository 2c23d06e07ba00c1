"""A contiguous part of each clip, which may go on in the next one: `Window`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from latentcache.core.arguments import whole_number
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError, did_you_mean
from latentcache.reading.views.honest import check_long_enough, check_middle
from latentcache.reading.views.protocol import Pick, Record
from latentcache.reading.views.starts import Run

Start = Literal["random", "first", "all"]
#: The column per frame that ends windows, unless another one is named.
SEGMENT = "segment"


@dataclass(frozen=True)
class Window:
    """`frames` latent frames, every `step`-th, from a start: `latents`, and `frame_indices` [B, n].

    start: "random" draws `per_clip` starts for each clip and epoch; "first" takes the clip's first frames;
    "all" takes every start once per epoch. per_frame: columns with an entry per frame, which are cut
    alike. middle: take parts of clips even if the encoder's latents have seen frames outside them.

    run_on: a window may go on in the next clip of the same source, where one begins at the frame after;
    then frame_indices go on, too, and the other columns are those of the window's first clip. None: so it
    is if the encoder takes single frames, unless start is "first". segment: a column of `corpus.per_frame`
    that has one value throughout a window, if the cache has such a column. Either reads some columns of
    every sample table when the loader is made.
    """

    frames: int
    step: int = 1
    start: Start = "random"
    per_clip: int = 1
    middle: bool = False
    per_frame: Sequence[str] = ()
    run_on: bool | None = None
    segment: str | None = SEGMENT

    def __post_init__(self) -> None:
        for name in ("frames", "step", "per_clip"):
            object.__setattr__(self, name, whole_number(f"Window: {name}", getattr(self, name), 1))
        names = (self.per_frame,) if isinstance(self.per_frame, str) else tuple(self.per_frame)
        object.__setattr__(self, "per_frame", names)
        if self.start not in get_args(Start):
            raise ConfigError(
                f"Window: start {self.start!r} is not one of {', '.join(get_args(Start))}"
            )
        if self.run_on not in (None, True, False) or not isinstance(self.segment, str | None):
            raise ConfigError(
                f"Window: run_on {self.run_on!r} must be True, False or None, and segment "
                f"{self.segment!r} the name of a column, or None"
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
        goes_on = self._goes_on(spec)
        if not goes_on:
            check_long_enough("Window", self.span, buckets)
        cut = {name: num for name, num in buckets.items() if goes_on or num > self.frames}
        prefix = self.start == "first" and self.step == 1 and not goes_on
        check_middle(spec, "Window", prefix=prefix, allowed=self.middle, where=cut, goes_on=goes_on)

    def _goes_on(self, spec: LatentSpec) -> bool:
        """Tell whether windows may go on in the next clip."""
        if spec.ids is not None and spec.ids.scales:  # one sequence per image
            return False
        wanted = spec.frame_independent and self.start != "first"
        return self.span > 1 and (wanted if self.run_on is None else self.run_on)

    def run(self, cache: Any) -> Run | None:
        """Return what windows of a `Cache` are, if they go on or end with a segment. Raises ConfigError."""
        segment = self._segment(cache.per_frame_names, cache.sample_schema)
        goes_on = self._goes_on(cache.spec)
        if not goes_on and (segment is None or self.span == 1):
            return None
        asked = bool(self.run_on) or segment is not None
        return Run(span=self.span, goes_on=goes_on, segment=segment, is_asked_for=asked)

    def _segment(self, names: Sequence[str], schema: pa.Schema) -> str | None:
        """Return the column that ends windows, if there is one."""
        if self.segment is None or self.segment in names:
            return self.segment
        at = schema.get_field_index(self.segment)
        is_list = at >= 0 and pa.types.is_nested(schema.field(at).type)
        if self.segment != SEGMENT or is_list:
            why = "is kept as it is" if is_list else "is none of the cache's columns per frame"
            raise ConfigError(
                f"Window: segment {self.segment!r} {why}, so where segments end is unknown."
                f"{did_you_mean(self.segment, names)} Name it in corpus.per_frame when the cache is "
                "planned; or give segment=None, and windows go across segments."
            )
        return None

    def counts(self, legal: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return how many windows clips give, by where one may begin in each, [N, t]."""
        if self.start == "first":
            return legal[:, 0].astype(np.int64)
        if self.start == "all":
            return np.asarray(legal.sum(axis=1), np.int64)
        return np.where(legal.any(axis=1), self.per_clip, 0)

    def count(self, num_frames: int) -> int:
        """Return the samples per clip."""
        return num_frames - self.span + 1 if self.start == "all" else self.per_clip

    def most_frames(self, num_frames: int) -> int:  # noqa: ARG002 - as views have it
        """Return the window's frames."""
        return self.frames

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        """Choose the window of a sample."""
        starts = record.starts(self.span)
        number = {"first": 0, "all": record.number}.get(self.start)
        if number is None:
            number = int(torch.randint(len(starts), (), generator=draw))
        start = starts[number]
        return Pick(frames=range(start, start + self.span, self.step))

    def make(
        self, record: Record, arrays: Mapping[str, torch.Tensor], pick: Pick
    ) -> dict[str, Any]:
        """Return the window and its place."""
        frames = list(pick.frames or ())
        columns = {name: record.per_frame(name, frames) for name in self.per_frame}
        return {"latents": arrays["latents"], "frame_indices": torch.tensor(frames), **columns}

    def settings(self) -> Mapping[str, Any]:
        """Return its fields; run_on and segment only if given: states of older loaders lack them."""
        fields = {**dataclasses.asdict(self), "per_frame": list(self.per_frame)}
        added = {"run_on": None, "segment": SEGMENT}
        return {name: v for name, v in fields.items() if name not in added or v != added[name]}
