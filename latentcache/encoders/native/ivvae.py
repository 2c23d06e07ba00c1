"""IV-VAE: a published checkpoint to an encoder, four frames at a time.

After "Improved Video VAE for Latent Video Diffusion Model" (Wu et al., CVPR 2025); published at
github.com/ali-vilab/iv-vae. The network is in `ivvae_model`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from latentcache.config.base import Section
from latentcache.core.spec import FrameRule, LatentSpec, Normaliser
from latentcache.encoders.checkpoint import Checkpoint, locate
from latentcache.encoders.checks import check_encoded, check_latents, check_pixels
from latentcache.encoders.inference import exact_kernels, to_pixels, to_values
from latentcache.encoders.native.ivvae_model import IVVAE, Carry
from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.values import check_values, from_range, to_range
from latentcache.errors import ConfigError, EncoderError

#: Pixels per latent along T, H, W; and the frames of every group except a clip's first, which has one.
STRIDE = (4, 8, 8)
#: The revision of the arithmetic; it counts changes and is part of the recipe.
REVISION = 1
#: (z, dim) of the published checkpoints, and the (shift, scale) of each in the published code.
PUBLISHED: Mapping[tuple[int, int], tuple[float, float]] = {
    (4, 64): (0.1250, 1.3196),
    (8, 64): (-0.0322, 1.0940),
    (16, 64): (-0.1553, 0.9697),
    (16, 96): (-0.0483, 0.7619),
}
_Prepare = Callable[[torch.Tensor], torch.Tensor]
_NAME = re.compile(r"ivvae_z(\d+)_dim(\d+)")
#: Names of tensors whose shapes are [z, ...] and [dim, ...].
_Z, _DIM = "conv1.conv_2d.weight", "encoder.conv1.conv_2d.weight"


class Config(Section):
    """The encoder `ivvae`. What changes the latents has no default."""

    kind: Literal["ivvae"]
    checkpoint: str = Field(
        min_length=1,
        description="The file, such as ivvae_z16_dim96.pth; the variant is read from its tensors.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        description="What the encoder computes in; the published code uses bfloat16."
    )
    store: Literal["moments", "mean", "sample"] = Field(
        description="moments: mean and log-variance; mean; or one sample, seeded by the clip's key. "
        "The published code always samples."
    )
    shift: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="For your own variant: trainers take (z - shift) * scale.",
    )
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="See `shift`.")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.shift is None) != (self.scale is None):
            raise ValueError("give `shift` and `scale` together, or neither")
        return self


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A checkpoint's variant: z latent channels, dim channels at full size."""

    z: int
    dim: int
    normaliser: Normaliser

    @property
    def name(self) -> str:
        return f"IV-VAE z{self.z}_dim{self.dim}"

    def empty_model(self) -> IVVAE:
        """Return the network on the meta device: shapes without values."""
        with torch.device("meta"):
            return IVVAE(dim=self.dim, z=self.z)


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec from the tensors' shapes and the hash of the file."""
    checkpoint, variant = _locate(config)
    return LatentSpec(
        encoder=config.kind,
        model_class=variant.name,
        channels=variant.z,
        stride=STRIDE,
        frame_rule=FrameRule(multiple=STRIDE[0], remainders=(1,)),
        stored=config.store,
        dtype=dtype,
        compute_dtype=config.dtype,
        normaliser=variant.normaliser,
        exactness="prefix_exact",
        weights_sha256=checkpoint.sha256(),
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; the checkpoint's location is not part of it."""
    checkpoint, variant = _locate(config)
    return {
        "kind": config.kind,
        "model_class": variant.name,
        "revision": REVISION,
        "weights_sha256": checkpoint.sha256(),
        "dtype": config.dtype,
        "store": config.store,
        "shift": variant.normaliser.shift[0],
        "scale": variant.normaliser.scale[0],
    }


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> IVVAEEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    checkpoint, variant = _locate(config)
    checkpoint.check_unchanged(spec)
    model = variant.empty_model()
    checkpoint.load_into(
        model, dtype=getattr(torch, config.dtype), device=device, name=variant.name
    )
    return IVVAEEncoder(model, spec, device)


def _locate(config: Config) -> tuple[Checkpoint, _Variant]:
    """Return the checkpoint, with all its tensors' shapes checked, and its variant."""
    checkpoint = locate(config.checkpoint, "encoder.checkpoint")
    shapes = checkpoint.shapes()
    if not all(len(shapes.get(name, ())) == 4 for name in (_Z, _DIM)):
        raise EncoderError(
            f"encoder.checkpoint: {checkpoint.path} is no checkpoint of IV-VAE: it lacks the "
            f"convolution {_Z} or {_DIM}. Give a file such as ivvae_z16_dim96.pth."
        )
    z, dim = shapes[_Z][0], shapes[_DIM][0]
    told = _NAME.search(checkpoint.path.name)
    if told is not None and (int(told[1]), int(told[2])) != (z, dim):
        raise ConfigError(
            f"encoder.checkpoint: {checkpoint.path.name} is z{told[1]}_dim{told[2]} by its name, but "
            f"z{z}_dim{dim} by its tensors: a file was renamed or mixed up, and the latents would "
            "be scaled for another model. Give the file under its own name."
        )
    variant = _Variant(z=z, dim=dim, normaliser=_normaliser(config, z, dim))
    with checkpoint.architecture_of(variant.name):
        model = variant.empty_model()
    checkpoint.check_shapes(shapes, model, variant.name)
    return checkpoint, variant


def _normaliser(config: Config, z: int, dim: int) -> Normaliser:
    published = PUBLISHED.get((z, dim))
    if published is not None and config.shift is not None:
        raise ConfigError(
            f"encoder.shift and encoder.scale are for your own variants: z{z}_dim{dim} has the "
            f"published {published[0]} and {published[1]}. Remove them."
        )
    if config.shift is not None and config.scale is not None:
        published = (config.shift, config.scale)
    if published is None:
        known = ", ".join(f"z{z}_dim{dim}" for z, dim in PUBLISHED)
        raise ConfigError(
            f"encoder.checkpoint: z{z}_dim{dim} is none of the published variants ({known}), so "
            "no normalisation of its latents is known. Set encoder.shift and encoder.scale: "
            "the mean of its latents, and one over their standard deviation."
        )
    return Normaliser(kind="shift_scale", shift=published[:1], scale=published[1:])


class IVVAEEncoder:
    """IV-VAE on its device. What passes from group to group is in a `Carry`, one per call."""

    def __init__(self, model: IVVAE, spec: LatentSpec, device: torch.device) -> None:
        self.spec = spec
        self._model = model
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.compute_dtype)
        # Order as in the published script: first to the model's dtype, then x / 127.5 - 1 in it.
        self._levels = (torch.arange(256).to(self._dtype) / 127.5 - 1.0).to(device)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to moments [B, 2C, t, h, w]; memory does not grow with the frames."""
        thw = check_pixels(self.spec, pixels_BTHWC)
        return self._encode(pixels_BTHWC, thw, self._from_pixels)

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip in groups of frames; yields the moments of one latent frame at a time."""
        carry = Carry()
        for group in regroup(check_stream(self.spec, groups, frames), frames, 1, STRIDE[0]):
            with exact_kernels(self._device):
                moments = self._model.encode_group(self._from_pixels(group), carry)
            yield moments

    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to moments [B, 2C, t, h, w]."""
        thw = check_values(self.spec, values_BTHWC)
        return self._encode(values_BTHWC, thw, self._from_values)

    def _from_pixels(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        return to_values(pixels_BTHWC, self._levels).transpose(1, 2)

    def _from_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        return to_range(values_BTHWC, self.spec, self._device, self._dtype)

    def _encode(
        self, clips_BTHWC: torch.Tensor, thw: tuple[int, int, int], prepare: _Prepare
    ) -> torch.Tensor:
        carry = Carry()
        groups = [clips_BTHWC[:, :1], *torch.split(clips_BTHWC[:, 1:], STRIDE[0], dim=1)]
        with exact_kernels(self._device):
            parts = [
                self._model.encode_group(prepare(group), carry)
                for group in groups
                if group.shape[1]
            ]
            moments = torch.cat(parts, dim=2)
        check_encoded(self.spec, moments, (len(clips_BTHWC), 2 * self.spec.channels, *thw))
        return moments

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents [B, C, t, h, w] to uint8 pixels [B, T, H, W, 3] on the CPU.

        Levels are rounded; the published script cuts off their fractions, half a level darker.
        """
        return self._decode(
            latents_BCthw, lambda v: to_pixels(v.float().add_(1).div_(2).transpose(1, 2))
        )

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents [B, C, t, h, w] to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        return self._decode(latents_BCthw, lambda values: from_range(values, self.spec))

    def _decode(self, latents_BCthw: torch.Tensor, finish: _Prepare) -> torch.Tensor:
        """Return what `finish` makes, [B, T, H, W, 3], of decoded values [B, 3, T, H, W]."""
        check_latents(self.spec, latents_BCthw)
        carry = Carry()
        with exact_kernels(self._device):
            latents = latents_BCthw.to(self._device, self._dtype)
            groups = [
                finish(self._model.decode_group(latent, carry))
                for latent in torch.split(latents, 1, dim=2)
            ]
            return torch.cat(groups, dim=1)
