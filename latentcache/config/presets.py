"""Presets of `clips`: a trainer's own keys, and the plain settings that give the pixels of that trainer.

From the code of musubi-tuner 30c658c, finetrainers f476c37, FastVideo 2f3d407, SimpleTuner bc8e6ab and
diffusion-pipe 8f83dbf. docs/presets.md says where they differ all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from latentcache.config.base import Positive, Section
from latentcache.config.geometry import MAX_RATIO, MAX_SIDE, MIN_RATIO, Side, aspect_ratio
from latentcache.errors import did_you_mean

Plain = dict[str, Any]
Ratio = Annotated[float, Field(ge=MIN_RATIO, le=MAX_RATIO)]
Rate = Annotated[float, Field(gt=0, le=1e6)]


class _Preset(Section):
    def plain(self) -> Plain:
        """Return the plain settings of `clips` that these stand for. Raises ValueError."""
        raise NotImplementedError


def _aligned(frames: int) -> int:
    """Return the most frames of the form 4k+1 that are no more."""
    return (frames - 1) // 4 * 4 + 1


class Musubi(_Preset):
    """A `[[datasets]]` of videos of musubi-tuner. Caching makes buckets whatever `enable_bucket` says."""

    resolution: Side | tuple[Side, Side] = (960, 544)
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    target_frames: list[Positive] = Field(default=[1], min_length=1)
    frame_extraction: Literal["head", "chunk", "slide", "uniform", "full"] = "head"
    frame_stride: Positive = 1
    frame_sample: Positive = 1
    max_frames: Positive = 129
    source_fps: Rate | None = None
    architecture: Literal["wan", "hv", "hv15", "fp", "k5"] = "wan"

    def plain(self) -> Plain:
        """Return the plain settings."""
        plain: Plain = {
            "buckets": {"sizes": self._sizes(), "nearest": "difference"},
            "resize": {"filter": "area", "enlarge": "lanczos", "rounding": "half_up"},
            **self._frames(),
        }
        if self.source_fps is not None:
            fps = {"wan": 16.0, "fp": 30.0}.get(self.architecture, 24.0)
            plain |= {"fps": fps, "source_fps": self.source_fps, "sampling": "accumulate"}
        return plain

    def _frames(self) -> Plain:
        if self.frame_extraction == "full":
            return {"frames": _aligned(self.max_frames), "too_short": "shorten"}
        frames = sorted({_aligned(n) for n in self.target_frames})
        plain: Plain = (
            {"frames": frames[0]} if len(frames) == 1 else {"frames": frames, "lengths": "each"}
        )
        if self.frame_extraction == "chunk":
            plain["select"] = "chunk"
        elif self.frame_extraction == "slide":
            plain |= {"select": "slide", "stride": self.frame_stride}
        elif self.frame_extraction == "uniform" and self.frame_sample > 1:
            plain["select"] = f"linspace:{self.frame_sample}"
        return plain

    def _sizes(self) -> list[list[int]]:
        given = self.resolution
        area = given * given if isinstance(given, int) else given[0] * given[1]
        edge = int(math.sqrt(area))
        first = edge // 2 - edge // 2 % 16
        if first == 0:
            raise ValueError("resolution: musubi-tuner has no buckets below 32 x 32")
        sizes = set()
        for width in range(first, edge + 16, 16):
            height = area // width - area // width % 16
            sizes |= {(width, height), (height, width)}
        return [[height, width] for width, height in sorted(sizes) if min(width, height) > 0]


class Finetrainers(_Preset):
    """A dataset of videos of finetrainers."""

    video_resolution_buckets: list[str | tuple[Positive, Positive, Positive]] = Field(min_length=1)
    reshape_mode: Literal["bicubic", "resize_crop"] = "bicubic"

    def plain(self) -> Plain:
        """Return the plain settings."""
        # Of sizes as near finetrainers takes the highest, then the widest; `choose` takes the first.
        buckets = sorted(map(_bucket, self.video_resolution_buckets), reverse=True)
        frames = sorted({bucket[0] for bucket in buckets})
        by_frames = [list(dict.fromkeys(b[1:] for b in buckets if b[0] == n)) for n in frames]
        if any(sizes != by_frames[0] for sizes in by_frames):
            raise ValueError(
                "video_resolution_buckets: each number of frames needs the same sizes; make one "
                "cache for each number of frames"
            )
        resize = {"filter": "bicubic", "fit": "stretch"}
        if self.reshape_mode == "resize_crop":
            resize = {"filter": "bilinear", "fit": "cover", "rounding": "floor"}
        return {
            "frames": frames,
            "sampling": "spread",
            "buckets": {"sizes": [list(size) for size in by_frames[0]], "nearest": "difference"},
            "resize": {**resize, "antialias": False},
        }


def _bucket(given: str | tuple[int, int, int]) -> tuple[int, int, int]:
    parts = given.split("x") if isinstance(given, str) else [str(n) for n in given]
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
        raise ValueError(f"video_resolution_buckets: {given!r} is no bucket; write 49x480x720")
    return int(parts[0]), int(parts[1]), int(parts[2])


class FastVideo(_Preset):
    """The preprocessing of FastVideo."""

    num_frames: Positive
    max_height: Positive
    max_width: Positive
    train_fps: Rate = 30.0

    def plain(self) -> Plain:
        """Return the plain settings."""
        return {
            "frames": self.num_frames,
            "size": [self.max_height, self.max_width],
            "fps": self.train_fps,
            "sampling": "floor",
            "resize": {"filter": "bilinear", "align_corners": True, "fit": "crop_first"},
        }


class SimpleTuner(_Preset):
    """A data backend of videos of SimpleTuner, with crop_style center."""

    resolution: Annotated[float, Field(gt=0, le=MAX_SIDE)]
    resolution_type: Literal["area", "pixel_area"] = "pixel_area"
    aspect_bucket_alignment: Side = 64
    num_frames: Positive

    def plain(self) -> Plain:
        """Return the plain settings."""
        is_edge = self.resolution_type == "pixel_area"
        megapixels = self.resolution**2 / 1e6 if is_edge else self.resolution
        edge = self._rounded(int(math.sqrt(megapixels * 1e6)))
        square = self._rounded(math.sqrt(self._square_area(megapixels)))
        buckets = {"area": edge * edge, "multiple": self.aspect_bucket_alignment}
        resize = {"filter": "bilinear", "library": "opencv", "antialias": False, "fit": "twice"}
        return {
            "frames": self.num_frames,
            "buckets": {**buckets, "ratio_decimals": 2, "square": square},
            "resize": resize if square == edge else {**resize, "square": edge},
        }

    def _rounded(self, side: float) -> int:
        multiple = self.aspect_bucket_alignment
        return max(multiple, round(side / multiple) * multiple)

    @staticmethod
    def _square_area(megapixels: float) -> float:
        """Return how many pixels a square has: near these numbers, another area than other buckets."""
        for near, side in {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}.items():
            if abs(megapixels - near) < 0.05:
                return side * side
        return megapixels * 1e6


class DiffusionPipe(_Preset):
    """A `[[directory]]` of videos of diffusion-pipe, with the settings of its dataset."""

    resolutions: list[Side | tuple[Side, Side]] = Field(min_length=1, max_length=1)
    enable_ar_bucket: bool = False
    ar_buckets: list[Ratio | tuple[Side, Side]] | None = None
    min_ar: Ratio | None = None
    max_ar: Ratio | None = None
    num_ar_buckets: Annotated[int, Field(gt=0, le=1000)] | None = None
    frame_buckets: list[Positive] = Field(min_length=1)
    video_clip_mode: Literal["single_beginning", "single_middle"] = "single_beginning"
    framerate: Rate = 16.0
    pixels_round_to_multiple: Side = 16

    @model_validator(mode="after")
    def _has_ratios(self) -> Self:
        by_number = (self.min_ar, self.max_ar, self.num_ar_buckets)
        if self.enable_ar_bucket and not self.ar_buckets and None in by_number:
            raise ValueError(
                "enable_ar_bucket needs ar_buckets; or min_ar, max_ar and num_ar_buckets"
            )
        return self

    def plain(self) -> Plain:
        """Return the plain settings."""
        needed: dict[int, int] = {}
        for number in sorted({n for n in self.frame_buckets if n > 1}):
            needed.setdefault(_aligned(number), number)
        if not needed:
            raise ValueError(
                "frame_buckets: diffusion-pipe leaves videos out of the bucket of 1 frame"
            )
        frames, needs = list(needed), list(needed.values())
        ratios = self._ratios()
        return {
            "frames": frames[0] if len(frames) == 1 else frames,
            **({} if needs == frames else {"needs_frames": needs}),
            "fps": self.framerate,
            "sampling": "linspace",
            "select": "middle" if self.video_clip_mode == "single_middle" else "first",
            "buckets": {
                "sizes": [self._size_at(ratio) for ratio in ratios],
                "aspect_ratios": ratios,
                "ratio_of": "aspect_ratio",
            },
            "resize": {"filter": "bicubic", "library": "pillow", "fit": "box"},
        }

    def _size_at(self, ratio: float) -> list[int]:
        given = self.resolutions[0]
        edge = given if isinstance(given, int) else round(math.sqrt(given[0] * given[1]), 3)
        width = math.sqrt(edge**2 * ratio)
        multiple = self.pixels_round_to_multiple
        sides = (edge**2 / width, width)
        return [max(1, round(side / multiple)) * multiple for side in sides]

    def _ratios(self) -> list[float]:
        """Return the ratios of the buckets: diffusion-pipe rounds them before it makes sizes of them."""
        if not self.enable_ar_bucket:
            return [1.0]
        if self.ar_buckets:
            ratios = [
                aspect_ratio(r if isinstance(r, float) else f"{r[0]}:{r[1]}")
                for r in self.ar_buckets
            ]
            return sorted({round(ratio, 3) for ratio in ratios})
        assert self.min_ar is not None
        assert self.max_ar is not None
        assert self.num_ar_buckets is not None
        spaced = np.geomspace(self.min_ar, self.max_ar, self.num_ar_buckets)
        return sorted({float(np.round(ratio, 3)) for ratio in spaced})


PRESETS: Mapping[str, type[_Preset]] = {
    "musubi": Musubi,
    "finetrainers": Finetrainers,
    "fastvideo": FastVideo,
    "simpletuner": SimpleTuner,
    "diffusion-pipe": DiffusionPipe,
}


def expanded(data: Any) -> Any:
    """Return the settings of `clips` with a preset replaced by what it stands for; all else as it is.

    Plain settings that are given beside the preset take the place of its own. Raises ValueError.
    """
    if not isinstance(data, dict) or "preset" not in data:
        return data
    name = data["preset"]
    model = PRESETS.get(name) if isinstance(name, str) else None
    if model is None:
        raise ValueError(
            f"preset: {name!r} is none.{did_you_mean(str(name), list(PRESETS))} There are: "
            f"{', '.join(PRESETS)}"
        )
    own = {key: value for key, value in data.items() if key in model.model_fields}
    plain = {key: value for key, value in data.items() if key not in own and key != "preset"}
    try:
        return {**model.model_validate(own).plain(), **plain}
    except ValidationError as error:
        raise ValueError(f"preset {name}: {_problems(error)}") from None


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = problem["loc"][0] if problem["loc"] else ""
        text = "required, but not given" if problem["type"] == "missing" else problem["msg"]
        lines.append(f"{where}: {text}" if where else text)
    return "; ".join(dict.fromkeys(lines))
