"""What this package knows of an autoencoder class of diffusers. No I/O but through `Settings`.

`video_classes` and `image_classes` hold one record per class; `encoder` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from latentcache.core.spec import Exactness, FrameRule, IdSpec, Normaliser, Stored
from latentcache.errors import ConfigError

#: What can be stored for a class with a posterior, and for one without.
POSTERIOR: tuple[Stored, ...] = ("moments", "mean", "sample")
DETERMINISTIC: tuple[Stored, ...] = ("mean",)
UNTILED: Mapping[str, Any] = {"use_tiling": False, "use_slicing": False}
#: The same, one clip at a time: for classes that take only one clip, or whose result depends on the batch.
UNTILED_ALONE: Mapping[str, Any] = {"use_tiling": False, "use_slicing": True}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A model's files, in so far as its facts depend on them.

    setting: reads a key of config.json, or the class's default if the file lacks it. tensor: reads one
    buffer from the weights' files, and nothing else from them.
    """

    setting: Callable[[str], Any]
    tensor: Callable[[str], torch.Tensor]

    def __call__(self, key: str) -> Any:
        """Return the value of a key of config.json."""
        return self.setting(key)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is true of one model. For names not explained here, see the fields of `LatentSpec`.

    channels: of its latents; with ids, of what is quantised. attributes: the attributes that steer
    hidden chunking and tiling. They are set on the model one by one, so that no version's default
    decides, and they are part of the recipe. stores: what can be stored. ids: what its ids mean, if it
    has any. pixel_range: None if its models differ, and the configuration must say.
    """

    channels: int
    stride: tuple[int, int, int]
    frame_rule: FrameRule
    exactness: Exactness
    normaliser: Normaliser = field(default_factory=Normaliser)
    attributes: Mapping[str, Any] = field(default_factory=lambda: dict(UNTILED))
    stores: tuple[Stored, ...] = POSTERIOR
    ids: IdSpec | None = None
    pixel_range: tuple[float, float] | None = (-1.0, 1.0)
    size_rules: tuple[FrameRule, FrameRule] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelClass:
    """One autoencoder class of diffusers.

    since: the first version of diffusers that has it. encode: (model, pixels [B, 3, T, H, W], what is
    stored) to moments, latents or ids. decode: (model, latents or ids) to pixels [B, 3, T, H, W].
    reset: clears state kept on the module, if it keeps any. arguments: defaults of method arguments that
    no attribute replaces; they are checked because they decide the latents: {method: {name: value}}.
    prepare: what else is done to a loaded model.
    """

    name: str
    since: str
    facts: Callable[[Settings], ModelFacts]
    encode: Callable[[Any, torch.Tensor, Stored], torch.Tensor]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    reset: Callable[[Any], None] | None = None
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None


def grouped(multiple: int, *, first_alone: bool = True, maximum: int | None = None) -> FrameRule:
    """Return the rule 1 + multiple * k, or multiple * k."""
    if multiple == 1:
        return FrameRule(maximum=maximum)
    return FrameRule(multiple=multiple, remainders=(int(first_alone),), maximum=maximum)


def halvings(blocks: Sequence[Any]) -> int:
    """Return the reduction of a network in which every block but one halves."""
    return int(2 ** (len(blocks) - 1))


def scaled(factor: float, shift: float = 0.0) -> Normaliser:
    """Return (z - shift) * factor, as the simplest kind that can say it."""
    if shift:
        return Normaliser(kind="shift_scale", shift=(float(shift),), scale=(float(factor),))
    if factor == 1:
        return Normaliser()
    return Normaliser(kind="scale", scale=(float(factor),))


def by_channel(
    mean: Sequence[float], std: Sequence[float], channels: int, factor: float = 1.0
) -> Normaliser:
    """Return (z - mean) * (factor / std), the quotient rounded to float32."""
    _check_lengths(mean, std, channels, "channels")
    return Normaliser(kind="channel", shift=tuple(map(float, mean)), scale=_scale(std, factor))


def by_channel_and_frame(
    mean: Sequence[float], std: Sequence[float], channels: int, factor: float
) -> Normaliser:
    """Return the same with a value for each channel and latent frame; a channel's values are in a row."""
    frames = len(mean) / channels
    _check_lengths(mean, std, channels * math.ceil(frames), "values of channels and latent frames")
    return Normaliser(
        kind="channel_frame", shift=tuple(map(float, mean)), scale=_scale(std, factor)
    )


def require_stride(name: str, temporal: int, expected: int) -> None:
    """Raise ConfigError if a class encodes groups of frames that its model does not reduce to one."""
    if temporal != expected:
        raise ConfigError(
            f"encoder.model: this {name} reduces time by {temporal}, but the class encodes frames in "
            f"groups of {expected} whatever its config says, so its latents would be cut wrongly. "
            f"Take a model that reduces time by {expected}, as the published ones do."
        )


def _check_lengths(mean: Sequence[float], std: Sequence[float], count: int, what: str) -> None:
    if len(mean) != count or len(std) != count:
        raise ConfigError(
            f"encoder.model: the model has {count} {what} but {len(mean)} latents_mean and {len(std)} "
            "latents_std, so its latents could not be normalised. Correct config.json."
        )


def _scale(std: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple((factor / torch.tensor(std, dtype=torch.float32)).tolist())
