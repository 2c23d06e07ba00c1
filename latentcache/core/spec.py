"""What an encoder takes and what its latents are: the part of cache.json that a reader needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentcache.errors import ConfigError, GeometryError

Stored = Literal["moments", "mean", "sample", "ids"]

Exactness = Literal["exact", "prefix_exact", "approximate"]

#: Bytes of one element, by the name that cache.json and Zarr use.
ITEM_BYTES: Mapping[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
}


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """Which numbers of pixel frames an encoder takes: T % multiple in remainders, minimum <= T <= maximum.

    Also used for numbers of rows or columns, if sizes have a rule beyond the stride.
    """

    multiple: int = 1
    remainders: tuple[int, ...] = (0,)
    minimum: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        if self.multiple < 1 or not all(0 <= r < self.multiple for r in self.remainders):
            raise ConfigError(f"not a frame rule: {self}")

    def is_legal(self, frames: int) -> bool:
        """Tell whether the encoder takes `frames` pixel frames."""
        if self.maximum is not None and frames > self.maximum:
            return False
        return frames >= self.minimum and frames % self.multiple in self.remainders

    def longest(self, at_most: int) -> int | None:
        """Return the largest legal number of frames <= at_most, or None."""
        if self.maximum is not None:
            at_most = min(at_most, self.maximum)
        lowest = max(self.minimum, at_most - self.multiple)
        return next((n for n in range(at_most, lowest - 1, -1) if self.is_legal(n)), None)

    def shortest(self, at_least: int) -> int | None:
        """Return the smallest legal number of frames >= at_least, or None if `maximum` is below it."""
        start = max(self.minimum, at_least)
        return next((n for n in range(start, start + self.multiple + 1) if self.is_legal(n)), None)

    def nearest(self, frames: int) -> list[int]:
        """Return the nearest legal numbers below and above `frames`, as far as there are any."""
        near = [self.longest(frames), self.shortest(frames)]
        return [n for n in near if n is not None]

    def describe(self) -> str:
        """Return the rule in words, such as `4k+1`."""
        end = f", at most {self.maximum}" if self.maximum is not None else ""
        if self.multiple == 1:
            return f"any number from {self.minimum}{end}"
        forms = [f"{self.multiple}k+{r}" if r else f"{self.multiple}k" for r in self.remainders]
        start = f", at least {self.minimum}" if self.minimum > 1 else ""
        return " or ".join(forms) + start + end


def _frame_rule(data: Mapping[str, Any]) -> FrameRule:
    return FrameRule(**{**data, "remainders": tuple(data["remainders"])})


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """How a trainer turns raw latents into what its model sees: (z - shift) * scale, elementwise.

    kind: `none`; `scale` (one value); `shift_scale` (one shift and one scale); `channel` (one value per
    channel); `channel_frame` (one value per channel and latent frame, the frames of a channel in a row;
    as many latent frames can be normalised as it has values for, from the clip's first one on).
    """

    kind: Literal["none", "scale", "shift_scale", "channel", "channel_frame"] = "none"
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.shift or not self.scale or any(s == 0 for s in self.scale):
            raise ConfigError(f"not a normaliser: {self}")


@dataclass(frozen=True, kw_only=True)
class IdSpec:
    """What the ids of a discrete tokenizer mean.

    bit_order: of lookup-free quantisers, whose id is its code's signs: which end channel 0 is on.
    scales: side lengths of multi-scale ids, which are stored one scale after the other, [sum of squares];
    else ids are [t, h, w].
    """

    codebook_size: int
    bit_order: Literal["none", "lsb_first", "msb_first"] = "none"
    scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.codebook_size <= 1 << 32:
            raise ConfigError(
                f"a codebook of {self.codebook_size} codes: ids are stored in 32 bits at most"
            )

    @property
    def dtype(self) -> str:
        """The smallest unsigned type that holds the codebook."""
        return next(
            d for d in ("uint8", "uint16", "uint32") if self.codebook_size <= 256 ** ITEM_BYTES[d]
        )


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """What the latents of a cache are. It is written into cache.json and is all that a reader needs.

    encoder: kind in the config; model_class: the class that ran. channels: C of one latent, without
    the log-variance that `moments` store beside the mean. stride: pixels per latent along T, H, W.
    dtype: of the stored array. compute_dtype: of the encoder. pixel_range, pixel_layout: of the model's
    RGB input; BCHW means one frame at a time.
    weights_sha256: over the weight files; None if the encoder has no weights. ids: for discrete
    tokenizers, whose `channels` is 1. fixed_size: (height, width) if the encoder takes only one size.
    size_rules: of height and of width, if being a multiple of the stride is not enough.
    """

    encoder: str
    model_class: str
    channels: int
    stride: tuple[int, int, int]
    frame_rule: FrameRule
    stored: Stored
    dtype: str
    compute_dtype: str = "float32"
    normaliser: Normaliser = field(default_factory=Normaliser)
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    pixel_layout: Literal["BCTHW", "BTCHW", "BCHW"] = "BCTHW"
    exactness: Exactness = "exact"
    weights_sha256: str | None = None
    ids: IdSpec | None = None
    fixed_size: tuple[int, int] | None = None
    size_rules: tuple[FrameRule, FrameRule] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ConfigError(
                f"unknown stored dtype {self.dtype!r}; known: {', '.join(ITEM_BYTES)}"
            )
        if self.channels < 1 or min(self.stride) < 1:
            raise ConfigError(f"not a latent spec: channels {self.channels}, stride {self.stride}")
        if (self.stored == "ids") != (self.ids is not None):
            raise ConfigError("a spec says what its ids mean if, and only if, ids are stored")

    @property
    def stored_channels(self) -> int:
        """Channels of the stored array: mean and logvar for moments, else the latent's own."""
        return 2 * self.channels if self.stored == "moments" else self.channels

    @property
    def frame_independent(self) -> bool:
        """Whether each latent frame is of one pixel frame only: encoded by itself it is the same."""
        per_frame = self.pixel_layout == "BCHW" and self.stride[0] == 1
        return per_frame and self.exactness == "prefix_exact"

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one stored sample for a clip of T x H x W pixels.

        [C, t, h, w]; [t, h, w] for ids, or [n] for multi-scale ids.

        Raises GeometryError if the encoder cannot take the clip.
        """
        self.check_frames(frames)
        self.check_size(height, width)
        _, sh, sw = self.stride
        grid = (self.latent_frames(frames), height // sh, width // sw)
        if self.ids is None:
            return (self.stored_channels, *grid)
        return (sum(side * side for side in self.ids.scales),) if self.ids.scales else grid

    def latent_frames(self, frames: int) -> int:
        """Return how many latent frames a clip of T frames gives, whether the encoder takes it or not."""
        return -(-frames // self.stride[0])

    def check_frames(self, frames: int) -> None:
        """Raise GeometryError, naming the nearest legal numbers, if `frames` is not legal."""
        if self.frame_rule.is_legal(frames):
            return
        near = " or ".join(map(str, self.frame_rule.nearest(frames)))
        raise GeometryError(
            f"{self.model_class} takes {self.frame_rule.describe()} frames per clip, not {frames}: "
            f"it would silently drop or regroup the rest. Set clips.frames to {near}."
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise GeometryError, naming the nearest legal sizes, if H or W is off the stride."""
        _, sh, sw = self.stride
        if self.fixed_size is not None:
            if (height, width) == self.fixed_size:
                return
            raise GeometryError(
                f"{self.model_class} takes only {self.fixed_size[0]}x{self.fixed_size[1]} pixels, not "
                f"{height}x{width}. Set clips.size to [{self.fixed_size[0]}, {self.fixed_size[1]}]."
            )
        if self.size_rules is not None:
            self._check_size_rules(self.size_rules, height, width)
        if height % sh == 0 and width % sw == 0 and height >= sh and width >= sw:
            return
        near = [max(sh, round(height / sh) * sh), max(sw, round(width / sw) * sw)]
        raise GeometryError(
            f"{self.model_class} reduces height by {sh} and width by {sw}; {height}x{width} is not "
            f"a multiple, and the border would be silently cut off. Use {near[0]}x{near[1]}."
        )

    def _check_size_rules(
        self, rules: tuple[FrameRule, FrameRule], height: int, width: int
    ) -> None:
        for axis, rule, got in zip(("height", "width"), rules, (height, width), strict=True):
            if not rule.is_legal(got):
                raise GeometryError(
                    f"{self.model_class} takes a {axis} of {rule.describe()} pixels, not {got}: it "
                    "would silently leave out the rest. "
                    f"Use a {axis} of {' or '.join(map(str, rule.nearest(got)))}."
                )

    def pixel_frames(self, t: int, frames: int) -> tuple[int, int]:
        """Return the half-open range of pixel frames that latent frame `t` of a clip covers."""
        st = self.stride[0]
        if not 0 <= t < -(-frames // st):
            raise IndexError(
                f"a clip of {frames} frames has {-(-frames // st)} latent frames, so none with number {t}"
            )
        alone = (frames - 1) % st + 1  # 1 if the first frame stands alone, st if groups are even
        return (0, alone) if t == 0 else (alone + st * (t - 1), alone + st * t)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatentSpec:
        """Read what `to_json` wrote."""
        normaliser = dict(data["normaliser"])
        ids, fixed_size, size_rules = data["ids"], data["fixed_size"], data["size_rules"]
        return cls(
            **{
                **data,
                "stride": tuple(data["stride"]),
                "pixel_range": tuple(data["pixel_range"]),
                "ids": ids and IdSpec(**{**ids, "scales": tuple(ids["scales"])}),
                "fixed_size": fixed_size and tuple(fixed_size),
                "size_rules": size_rules and tuple(map(_frame_rule, size_rules)),
                "frame_rule": _frame_rule(data["frame_rule"]),
                "normaliser": Normaliser(
                    kind=normaliser["kind"],
                    shift=tuple(normaliser["shift"]),
                    scale=tuple(normaliser["scale"]),
                ),
            }
        )
