"""TAESD: the tiny autoencoders of picture models (SD, SDXL, SD3, FLUX, Sana), frame by frame.

By Ollin Boer Bohan, github.com/madebyollin/taesd. The encoder and the decoder are separate files. The
decoder is needed only to look at what was cached, and is not part of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from latentcache.config.base import Section
from latentcache.core.spec import FrameRule, LatentSpec
from latentcache.encoders.checkpoint import Checkpoint, locate
from latentcache.encoders.checks import check_encoded, check_latents, check_pixels
from latentcache.encoders.inference import exact_kernels, to_pixels, to_values
from latentcache.encoders.native import tiny_models
from latentcache.encoders.native.tiny import Dtype, choose_variant, unit_levels
from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.values import check_values, from_range, to_range
from latentcache.errors import ConfigError, EncoderError

#: The revision of the arithmetic; it counts changes and is part of the recipe.
REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One published pair of files. has_pool: has a group norm over the whole picture inside."""

    channels: int
    stride: int = 8
    has_pool: bool = False

    def empty_encoder(self) -> nn.Module:
        """Return the encoder on the meta device."""
        with torch.device("meta"):
            if self.stride == 32:
                return tiny_models.taesana_encoder(self.channels)
            return tiny_models.taesd_encoder(self.channels, has_pool=self.has_pool)

    def empty_decoder(self) -> nn.Module:
        """Return the decoder on the meta device."""
        with torch.device("meta"):
            if self.stride == 32:
                return tiny_models.taesana_decoder(self.channels)
            return tiny_models.taesd_decoder(self.channels, has_pool=self.has_pool)


VARIANTS: Mapping[str, Variant] = {
    "taesd": Variant(channels=4),  # Stable Diffusion 1 and 2
    "taesdxl": Variant(channels=4),
    "taesd3": Variant(channels=16),
    "taef1": Variant(channels=16),  # FLUX.1, HiDream, Z-Image
    "taef2": Variant(channels=32, has_pool=True),  # FLUX.2, before its 2x2 patches are formed
    "taesana": Variant(channels=32, stride=32),
}


class Config(Section):
    """The encoder `taesd`."""

    kind: Literal["taesd"]
    encoder: str = Field(min_length=1, description="The file, such as taef2_encoder.pth.")
    decoder: str | None = Field(
        default=None,
        description="The file, such as taef2_decoder.pth; omitted: the cache cannot be decoded.",
    )
    variant: str | None = Field(
        default=None,
        description=f"{' | '.join(VARIANTS)}; omitted: taken from the encoder file's name.",
    )
    dtype: Dtype = Field(description="What the encoder computes in.")
    store: Literal["mean"] = Field(default="mean", description="The latent: there is no posterior.")


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec from the variant and the hash of the encoder's file."""
    checkpoint, name = _locate(config)
    variant = VARIANTS[name]
    return LatentSpec(
        encoder=config.kind,
        model_class=f"TAESD {name}",
        channels=variant.channels,
        stride=(1, variant.stride, variant.stride),
        pixel_layout="BCHW",
        frame_rule=FrameRule(),
        stored=config.store,
        dtype=dtype,
        compute_dtype=config.dtype,
        pixel_range=(0.0, 1.0),
        exactness="prefix_exact",
        weights_sha256=checkpoint.sha256(),
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; the decoder and the files' locations are not part of it."""
    checkpoint, name = _locate(config)
    return {
        "kind": config.kind,
        "model_class": f"TAESD {name}",
        "revision": REVISION,
        "weights_sha256": checkpoint.sha256(),
        "dtype": config.dtype,
        "store": config.store,
    }


def decoder_identity(config: Config) -> Mapping[str, Any]:
    """Return what else determines decoded values: the decoder's own file, if there is one."""
    if config.decoder is None:
        return {}
    return {"decoder_sha256": locate(config.decoder, "encoder.decoder").sha256()}


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> TAESDEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    checkpoint, name = _locate(config)
    checkpoint.check_unchanged(spec)
    variant, dtype = VARIANTS[name], getattr(torch, config.dtype)
    encoder = checkpoint.load_into(
        variant.empty_encoder(), dtype=dtype, device=device, name=f"the encoder of {name}"
    )
    decoder = None
    if config.decoder is not None:
        decoder = locate(config.decoder, "encoder.decoder").load_into(
            variant.empty_decoder(), dtype=dtype, device=device, name=f"the decoder of {name}"
        )
    return TAESDEncoder(encoder, decoder, spec, device)


def _locate(config: Config) -> tuple[Checkpoint, str]:
    """Return the encoder's file and its variant, with the shapes of both files' tensors checked."""
    checkpoint = locate(config.encoder, "encoder.encoder")
    name = choose_variant(config.variant, checkpoint.path, VARIANTS, suffix="_encoder")
    variant = VARIANTS[name]
    checkpoint.check_shapes(checkpoint.shapes(), variant.empty_encoder(), f"the encoder of {name}")
    if config.decoder is not None:
        other = locate(config.decoder, "encoder.decoder")
        named = other.path.name.partition(".")[0].removesuffix("_decoder")
        if named in VARIANTS and named != name:
            raise ConfigError(
                f"encoder.decoder: {other.path.name} is of {named}, but the encoder is of {name}: "
                "decoding would not give back what was encoded. Give the decoder of the same model."
            )
        other.check_shapes(other.shapes(), variant.empty_decoder(), f"the decoder of {name}")
    return checkpoint, name


class TAESDEncoder:
    """TAESD on its device; every frame is encoded on its own, so batches do not change its bits."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module | None, spec: LatentSpec, device: torch.device
    ) -> None:
        self.spec = spec
        self._encoder = encoder
        self._decoder = decoder
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.compute_dtype)
        self._levels = unit_levels(self._dtype, device)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to latents [B, C, T, h, w]."""
        thw = check_pixels(self.spec, pixels_BTHWC)
        frames = (
            (to_values(frame[None, None], self._levels)[0] for frame in clip)
            for clip in pixels_BTHWC
        )
        return self._encode(frames, (len(pixels_BTHWC), self.spec.channels, *thw))

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip in groups of frames; yields one latent frame at a time."""
        for frame in regroup(check_stream(self.spec, groups, frames), frames, 1, 1):
            yield self.encode(frame)

    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to latents [B, C, T, h, w]."""
        thw = check_values(self.spec, values_BTHWC)
        frames = (
            (
                to_range(frame[None, None], self.spec, self._device, self._dtype)[:, :, 0]
                for frame in clip
            )
            for clip in values_BTHWC
        )
        return self._encode(frames, (len(values_BTHWC), self.spec.channels, *thw))

    def _encode(
        self, clips: Iterable[Iterable[torch.Tensor]], shape: tuple[int, ...]
    ) -> torch.Tensor:
        """Encode each frame [1, 3, H, W] of each clip on its own."""
        with exact_kernels(self._device):
            latents = torch.stack([torch.cat([self._encoder(f) for f in clip]) for clip in clips])
            latents = latents.transpose(1, 2).contiguous()
        check_encoded(self.spec, latents, shape)
        return latents

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, T, h, w] to uint8 pixels [B, T, H, W, 3] on the CPU."""
        return self._decode(latents_BCthw, lambda frame: to_pixels(frame[None]))

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, T, h, w] to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        return self._decode(latents_BCthw, lambda f: from_range(f[:, :, None], self.spec))

    def _decode(
        self, latents_BCthw: torch.Tensor, finish: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return what `finish` makes, [1, 1, H, W, 3], of each decoded frame [1, 3, H, W]."""
        if self._decoder is None:
            raise EncoderError(
                f"{self.spec.model_class} has its decoder in a separate file, but none is "
                "configured, so nothing can be decoded. Set encoder.decoder to the file."
            )
        check_latents(self.spec, latents_BCthw)
        with exact_kernels(self._device):
            latents = latents_BCthw.to(self._device, self._dtype).transpose(1, 2)
            clips = [
                torch.cat([finish(self._decoder(latent[None])) for latent in clip], dim=1)
                for clip in latents
            ]
            return torch.cat(clips)
