"""Which frames of a source become clips, and at what size: the section `clips` of a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentcache.config.base import GrownSection, Positive, PositiveFloat
from latentcache.config.geometry import BucketsConfig, ResizeConfig, Side
from latentcache.config.presets import expanded

#: Other programs' names of `clips.select`.
SELECT_NAMES: Mapping[str, str] = {"head": "first", "chunk": "all"}


class ClipsConfig(GrownSection):
    """Which frames of a source become clips, and at what size.

    `preset: musubi`, `finetrainers`, `fastvideo`, `simpletuner` or `diffusion-pipe` stands for the settings
    that give the pixels of that trainer, and takes the trainer's own keys: see [presets.md](presets.md).
    """

    LATER: ClassVar = frozenset({"resize", "sampling", "source_fps", "lengths", "needs_frames"})

    frames: Positive | Annotated[list[Positive], Field(min_length=1)] = Field(
        description="Frames per clip; or a list: the longest that fits the source is used.",
    )
    fps: PositiveFloat | None = Field(
        default=None,
        description="Frames are sampled at this rate, each nearest in presentation time; "
        "omitted: every frame, at the source's own rate.",
    )
    sampling: Literal["nearest", "accumulate", "floor", "linspace", "spread"] = Field(
        default="nearest",
        description="How frames are sampled. nearest: nearest in time to `fps`. By counting frames, "
        "whatever their times: accumulate (some are dropped as fps over the source's rate adds up), floor "
        "(the source's rate over fps apart, rounded down), linspace (so many as `fps` makes, evenly from "
        "the first to the last). spread: a clip is spread evenly over the whole source, without `fps`.",
    )
    source_fps: PositiveFloat | None = Field(
        default=None,
        description="With `sampling` by counting: taken for the rate of every source; omitted: each "
        "source's own.",
    )
    lengths: Literal["longest", "each"] = Field(
        default="longest",
        description="If `frames` is a list: the longest that fits the source, or clips of each that fits.",
    )
    needs_frames: list[Positive] | None = Field(
        default=None,
        description="How many sampled frames a source needs for each of `frames`, in their order: "
        "diffusion-pipe asks for 36 where it takes 33. Omitted: those numbers themselves.",
    )
    select: str = Field(
        default="first",
        description="first (or head) | middle | all (or chunk; or slide, with `stride`) | uniform:K | "
        "linspace:K (as uniform:K, with starts rounded down) | random:K (K clips per source).",
    )
    stride: Positive | None = Field(
        default=None,
        description="For select: all or slide. Sampled frames between the starts of two clips; "
        "omitted: clips follow each other without overlap.",
    )
    size: tuple[Side, Side] | None = Field(
        default=None, description="[height, width] of every clip. Give this or `buckets`."
    )
    buckets: BucketsConfig | None = Field(
        default=None, description="Sizes by aspect ratio; a source goes to the nearest one."
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        default="bicubic",
        description="Resize filter, always antialiased; the shorter side is fitted, then cropped.",
    )
    resize: ResizeConfig | None = Field(
        default=None,
        description="Everything about resizing, in place of `interpolation`, for pixels that equal those "
        "of another program.",
    )
    too_short: Literal["record", "shorten"] = Field(
        default="record",
        description="What happens to a source with fewer frames than a clip: record it as failed, or "
        "shorten its clip to the most frames that the encoder takes.",
    )
    too_slow: Literal["repeat", "record"] = Field(
        default="repeat",
        description="What happens to a source with fewer frames per second than `fps`: its frames "
        "repeat, or it is recorded as failed.",
    )
    too_small: Literal["enlarge", "record"] = Field(
        default="enlarge",
        description="What happens to a source that is smaller, as shown, than its bucket: it is enlarged, "
        "or recorded as failed.",
    )
    seed: int = Field(default=0, description="For select: random:K.")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        return expanded(data)

    @property
    def takes_parts(self) -> bool:
        """Tell whether clips are parts of a source, and not all of it."""
        return self.select not in ("all", "slide") and self.sampling != "spread"

    @property
    def goes_by_time(self) -> bool:
        """Tell whether clips take frames by their times, and nobody counts a source's frames."""
        return self.fps is not None and self.sampling == "nearest"

    @field_validator("select")
    @classmethod
    def _parse_select(cls, select: str) -> str:
        select = SELECT_NAMES.get(select, select)
        if not re.fullmatch(r"first|middle|all|slide|(uniform|linspace|random):[1-9]\d*", select):
            raise ValueError(
                f"{select!r} is not one of: first, head, middle, all, chunk, slide, uniform:K, linspace:K, "
                "random:K (K >= 1)"
            )
        return select

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.size is None) == (self.buckets is None):
            raise ValueError(
                "give exactly one of `size: [height, width]` and `buckets: {area, multiple, "
                "aspect_ratios}`: the size of the pixels changes every latent, so it has no default"
            )
        if self.stride is not None and self.select not in ("all", "slide"):
            raise ValueError("`stride` is for `select: all`; remove it or change `select`")
        if self.stride is None and self.select == "slide":
            raise ValueError("`select: slide` needs `stride`")
        return self

    @model_validator(mode="after")
    def _sound_sampling(self) -> Self:
        counted = self.sampling in ("accumulate", "floor", "linspace")
        if counted and self.fps is None:
            raise ValueError(f"`sampling: {self.sampling}` needs `fps`")
        if self.sampling == "spread" and (self.fps is not None or self.select != "first"):
            raise ValueError("`sampling: spread` goes without `fps` and with `select: first`")
        if self.source_fps is not None and not counted:
            raise ValueError("`source_fps` is for sampling: accumulate, floor or linspace")
        if self.resize is not None and self.interpolation != "bicubic":
            raise ValueError("`resize` says everything; remove `interpolation`")
        if self.needs_frames is not None:
            self._check_needs(self.needs_frames)
        if self.lengths == "each" and self.too_short == "shorten":
            raise ValueError("`lengths: each` takes what fits; remove `too_short: shorten`")
        return self

    def _check_needs(self, needs: list[int]) -> None:
        frames = self._frames
        if len(needs) != len(frames) or any(n < m for n, m in zip(needs, frames, strict=False)):
            raise ValueError(
                f"`needs_frames` are {needs} and `frames` {frames}; give a number for each, no smaller"
            )
        if self.too_short == "shorten":
            raise ValueError("`needs_frames` leaves sources out; remove `too_short: shorten`")

    @property
    def _frames(self) -> list[int]:
        return [self.frames] if isinstance(self.frames, int) else self.frames

    @property
    def frame_counts(self) -> list[int]:
        """The numbers of frames that the config asks for, longest first."""
        return sorted(set(self._frames), reverse=True)

    def counts_that_fit(self, available: int) -> list[int]:
        """Return those of `frame_counts` for which a source of so many sampled frames is long enough."""
        needs = dict(zip(self._frames, self.needs_frames or self._frames, strict=True))
        return [count for count in self.frame_counts if needs[count] <= available]

    def sizes(self) -> list[tuple[int, int]]:
        """Return the (height, width) that clips can have."""
        return [self.size] if self.size else self.buckets.all_sizes() if self.buckets else []

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the clips of a source that is shown as height x width."""
        if self.size:
            return self.size
        assert self.buckets is not None
        return self.buckets.choose(height, width)

    def pixel_rules(self) -> dict[str, Any]:
        """Return, as plain values, what decoding follows beside the clip itself; see `decoders.rules`."""
        return {
            "interpolation": self.interpolation,
            "resize": self.resize and self.resize.model_dump(mode="json"),
            "sampling": self.sampling,
            "source_fps": self.source_fps,
        }
