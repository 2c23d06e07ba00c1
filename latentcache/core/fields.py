"""What a field of a cache is: named arrays per clip, beside its latents. Part of `field.json`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from latentcache.core.records import Bucket
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.errors import ConfigError

#: text: a caption's states; joint: the same, encoded with images; raw: pixels of the clip; visual: an
#: encoder's output for frames made from it. audio: the clip's sound, or an encoder's output for it. array:
#: numbers in a file of each clip's own. view: nothing stored, a part of the latents. given: what a program
#: of a user's wrote.
FieldKind = Literal["text", "joint", "raw", "visual", "audio", "array", "view", "given"]
#: zeros: attended zeros up to a fixed length; attended: the padding's own states; mask: the model gets
#: a mask.
Padding = Literal["zeros", "attended", "mask"]
#: What an array's shape follows from. fixed: `shape`; steps: the same, of many short rows; latents: the
#: clip's bucket, as its latents' does, with `shape[0]` channels and `shape[1]` latent frames (0: all), and
#: if the shape goes on, of clips of `shape[2] / shape[3]` times the bucket's height and width; levels: as
#: latents, of a mask, from 0 to 255; pixels: `shape[0]` frames of its pixels (0: all); by_step: `shape`,
#: whose first axis is read step by step; trajectory: the same of `shape[1]` channels of the clip's latents
#: at each of `shape[0]` steps.
ShapeRule = Literal["fixed", "steps", "latents", "levels", "pixels", "by_step", "trajectory"]
#: Of arrays that are read step by step.
BY_STEP = ("by_step", "trajectory")
#: Of arrays whose shape may have zeros, which stand for all.
_OPEN = ("latents", "levels", "pixels")

#: Names become folders, keys of batches, and columns.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
#: Keys that batches and samples of a cache have already.
TAKEN = frozenset(
    {"latents", "key", "caption", "source", "bucket", "cache", "start_s", "end_s", "dropped"}
)
#: What is appended to a field's name for keys of batches that say more of it.
SUFFIXES = ("_tokens", "_mask", "_choice", "_missing")
#: What blosc compresses at most.
MAX_SAMPLE_BYTES = 2**31 - 17
#: The longest piece of a padded array that is compressed together, and the shortest that pays.
MAX_PIECE, MIN_PIECE = 64, 16
#: The longest piece of samples of sound and the like, whose rows are short.
MAX_STEPS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class FieldArray:
    """One array of a field. name: empty for the field's own; the others are `FIELD.NAME`.

    shape: of one sample; see ShapeRule. padding: None where there is no axis of tokens; side: where the
    padding stands.
    """

    name: str = ""
    shape: tuple[int, ...]
    dtype: str
    padding: Padding | None = None
    side: Literal["left", "right"] = "right"
    rule: ShapeRule = "fixed"

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} is no name of an array: it names a folder")
        if self.padding not in (None, *get_args(Padding)) or self.side not in ("left", "right"):
            raise ConfigError(f"no array is padded with {self.padding!r} on the {self.side!r}")
        if self.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise ConfigError(f"an array of {self.dtype!r} cannot be stored; known: {known}")
        if self.rule not in get_args(ShapeRule):
            known = ", ".join(get_args(ShapeRule))
            raise ConfigError(f"no array has the rule {self.rule!r}; known: {known}")
        if not self.shape or min(self.shape) < (0 if self.rule in _OPEN else 1):
            raise ConfigError(f"not the shape of an array: {self.shape}")
        if self.rule == "trajectory" and len(self.shape) != 2:
            raise ConfigError(f"a trajectory's shape is (steps, channels), not {self.shape}")
        if math.prod(self.shape) * ITEM_BYTES[self.dtype] > MAX_SAMPLE_BYTES:
            raise ConfigError(f"no sample is as large as {self.shape} of {self.dtype}")

    @property
    def ragged(self) -> bool:
        """Whether a sample may have fewer of its first axis: padding is not stored if it follows."""
        return self.padding in ("zeros", "mask")

    @property
    def piece(self) -> int | None:
        """How many tokens, or steps, are compressed together; None if all are."""
        if self.rule in BY_STEP:
            return 1
        if not self.ragged:
            return None
        length = self.shape[0]
        most = min(MAX_STEPS if self.rule == "steps" else MAX_PIECE, length)
        best = max(n for n in range(1, most + 1) if length % n == 0)
        return best if MIN_PIECE <= best < length else None

    @property
    def shape_text(self) -> str:
        """The shape of a sample as docs write it: axes that follow from the clip's bucket have names."""
        axes: list[object] = list(self.shape)
        if self.rule == "pixels":
            axes = [self.shape[0] or "T", "H", "W", 3]
        elif self.rule == "trajectory":
            axes = [*self.shape, "t", "h", "w"]
        elif self.rule in ("latents", "levels"):
            scale = Fraction(*self.shape[2:]) if len(self.shape) > 2 else Fraction(1)
            sides = (_times(side, scale) for side in "hw")
            axes = [self.shape[0], self.shape[1] or "t", *sides]
        return f"[{', '.join(map(str, axes))}]"

    def shape_in(self, bucket: Bucket, spec: LatentSpec) -> tuple[int, ...]:
        """Return the shape of a clip's sample in a bucket."""
        if self.rule in ("fixed", "steps", "by_step"):
            return self.shape
        if self.rule == "pixels":
            return (self.shape[0] or bucket.frames, bucket.height, bucket.width, 3)
        *_, t, h, w = spec.latent_shape(bucket.frames, *self.size_in(bucket))
        if self.rule == "trajectory":
            return (*self.shape, t, h, w)
        return (self.shape[0], self.shape[1] or t, h, w)

    def size_in(self, bucket: Bucket) -> tuple[int, int]:
        """Return height and width of the pixels that clips of a bucket are decoded to for this array.

        Raises ConfigError where they are no whole numbers.
        """
        if self.rule != "latents" or len(self.shape) == 2:
            return bucket.height, bucket.width
        scale = Fraction(*self.shape[2:])
        height, width = bucket.height * scale, bucket.width * scale
        if height.denominator != 1 or width.denominator != 1:
            raise ConfigError(
                f"{scale} of {bucket.height}x{bucket.width} pixels is {float(height):g}x{float(width):g}: "
                "no whole number of pixels"
            )
        return int(height), int(width)


def _times(side: str, scale: Fraction) -> str:
    """Return a side times a ratio, such as 2h/3."""
    whole = side if scale.numerator == 1 else f"{scale.numerator}{side}"
    return whole if scale.denominator == 1 else f"{whole}/{scale.denominator}"


def given_frames(of: str, num_frames: int) -> list[int]:
    """Return which frames of a clip a field is made of, in order; the others of the clip are zeros, if any.

    of: first, last, first_last, clip, first_then_zeros or first_last_then_zeros. A clip of one frame
    has one, which is both of first_last.
    """
    last = num_frames - 1
    if of == "first_last":
        return [0, last]
    if of == "clip":
        return list(range(num_frames))
    wanted = {"first": [0], "last": [last], "first_then_zeros": [0]}.get(of, [0, last])
    return sorted(set(wanted))


def check_name(name: str) -> None:
    """Raise ConfigError unless a field can have this name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of a field: it names a folder and a key of batches. Use a lower-case "
            "letter, then letters, digits and _, 64 in all at most."
        )
    if name in TAKEN or name.endswith(SUFFIXES):
        raise ConfigError(f"a field cannot be named {name!r}: batches have such a key already")


def to_arrays(data: Sequence[Mapping[str, Any]]) -> tuple[FieldArray, ...]:
    """Return arrays from their JSON values."""
    return tuple(FieldArray(**{**array, "shape": tuple(array["shape"])}) for array in data)
