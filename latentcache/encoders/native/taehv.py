"""TAEHV: the tiny autoencoders of video models (Hunyuan, Wan, CogVideoX, LTX and others).

By Ollin Boer Bohan, github.com/madebyollin/taehv. A latent frame is made from 4 (LTX: 8) pixel frames
and from a memory of those before. The published code repeats the last frame of a clip until its length
fits. Here only lengths that fit are legal. So every latent is made only of real frames, and a prefix of
a cached latent is the latent of that prefix.

Encoder and decoder are not aligned: before a clip's first frame the decoder makes 3 frames (LTX: 7),
which are dropped. So k latents, made from 4k frames, decode to the first 4k - 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its common name
from pydantic import Field

from latentcache.config.base import Section
from latentcache.core.spec import FrameRule, LatentSpec
from latentcache.encoders.checkpoint import Checkpoint, locate
from latentcache.encoders.checks import check_encoded, check_latents, check_pixels
from latentcache.encoders.inference import exact_kernels, to_pixels, to_values
from latentcache.encoders.native import tiny_models
from latentcache.encoders.native.tiny import Dtype, choose_variant, unit_levels
from latentcache.encoders.native.tiny_models import TAEHV, Memory
from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.values import check_values, from_range, to_range
from latentcache.errors import ConfigError

_Prepare = Callable[[torch.Tensor], torch.Tensor]
#: The revision of the arithmetic; it counts changes and is part of the recipe.
REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One published checkpoint.

    patch: pixels along each side that the network sees as one position. merges, splits: how many frames
    become one, and how many one becomes, at each of the three stages. is_super: has the larger decoder.
    keeps_even: keeps all decoded frames if the number of latents is even (CogVideoX).
    """

    channels: int
    patch: int = 1
    merges: tuple[int, int, int] = (2, 2, 1)
    splits: tuple[int, int, int] = (1, 2, 2)
    is_super: bool = False
    keeps_even: bool = False

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent along T, H, W."""
        return (math.prod(self.merges), 8 * self.patch, 8 * self.patch)

    def dropped(self, num_latents: int) -> int:
        """Return how many frames the decoder makes before the clip's first one."""
        return 0 if self.keeps_even and num_latents % 2 == 0 else math.prod(self.splits) - 1

    def empty_model(self) -> TAEHV:
        """Return the network on the meta device: shapes without values."""
        decoder = tiny_models.taehv_super_decoder if self.is_super else tiny_models.taehv_decoder
        with torch.device("meta"):
            return TAEHV(
                tiny_models.taehv_encoder(self.channels, self.patch, self.merges),
                decoder(self.channels, self.patch, self.splits),
            )


_LTX = Variant(channels=128, patch=4, merges=(2, 2, 2), splits=(2, 2, 2))
VARIANTS: Mapping[str, Variant] = {
    "taehv": Variant(channels=16),  # Hunyuan Video 1
    "taehv1_5": Variant(channels=32, patch=2),
    "taehv1_5_super": Variant(channels=32, patch=2, is_super=True),
    "taew2_1": Variant(channels=16),  # Wan 2.1, Wan 2.2 14B, Qwen Image
    "taew2_2": Variant(channels=48, patch=2),  # Wan 2.2 5B
    "taew2_2_super": Variant(channels=48, patch=2, is_super=True),
    "taecvx": Variant(channels=16, keeps_even=True),  # CogVideoX
    "taeos1_3": Variant(channels=16),  # Open-Sora 1.3
    "taeltx_2": _LTX,
    "taeltx2_3": _LTX,
}


class Config(Section):
    """The encoder `taehv`."""

    kind: Literal["taehv"]
    checkpoint: str = Field(min_length=1, description="The file, such as taew2_1.pth.")
    variant: str | None = Field(
        default=None,
        description=f"{' | '.join(VARIANTS)}; omitted: taken from the file's name.",
    )
    dtype: Dtype = Field(description="What the encoder computes in.")
    store: Literal["mean"] = Field(default="mean", description="The latent: there is no posterior.")


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec from the variant and the hash of the file."""
    checkpoint, name = _locate(config)
    variant = VARIANTS[name]
    return LatentSpec(
        encoder=config.kind,
        model_class=f"TAEHV {name}",
        channels=variant.channels,
        stride=variant.stride,
        frame_rule=FrameRule(multiple=variant.stride[0], minimum=variant.stride[0]),
        stored=config.store,
        dtype=dtype,
        compute_dtype=config.dtype,
        pixel_range=(0.0, 1.0),
        pixel_layout="BTCHW",
        exactness="prefix_exact",
        weights_sha256=checkpoint.sha256(),
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; the checkpoint's location is not part of it."""
    checkpoint, name = _locate(config)
    return {
        "kind": config.kind,
        "model_class": f"TAEHV {name}",
        "revision": REVISION,
        "weights_sha256": checkpoint.sha256(),
        "dtype": config.dtype,
        "store": config.store,
    }


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> TAEHVEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    checkpoint, name = _locate(config)
    checkpoint.check_unchanged(spec)
    model = VARIANTS[name].empty_model()
    checkpoint.load_into(model, dtype=getattr(torch, config.dtype), device=device, name=name)
    return TAEHVEncoder(model, VARIANTS[name], spec, device)


def _locate(config: Config) -> tuple[Checkpoint, str]:
    """Return the checkpoint, with all its tensors' shapes checked, and its variant."""
    checkpoint = locate(config.checkpoint, "encoder.checkpoint")
    if "taeh3" in (config.variant, checkpoint.path.name.partition(".")[0]):
        raise ConfigError(
            "encoder.variant: taeh3 (MiniMax H3) is not supported: it encodes 17 frames at a time "
            "and drops latents at the end, so a latent would not cover the frames that this program "
            "records for it."
        )
    name = choose_variant(config.variant, checkpoint.path, VARIANTS)
    checkpoint.check_shapes(checkpoint.shapes(), VARIANTS[name].empty_model(), name)
    return checkpoint, name


class TAEHVEncoder:
    """TAEHV on its device. What passes from group to group is in a `Memory`, one per call."""

    def __init__(
        self, model: TAEHV, variant: Variant, spec: LatentSpec, device: torch.device
    ) -> None:
        self.spec = spec
        self._model = model
        self._variant = variant
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.compute_dtype)
        self._levels = unit_levels(self._dtype, device)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to latents [B, C, t, h, w]; memory does not grow with the frames."""
        thw = check_pixels(self.spec, pixels_BTHWC)
        return self._encode(pixels_BTHWC, thw, self._from_pixels)

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip in groups of frames; yields one latent frame at a time."""
        memory: Memory | None = None
        size = self.spec.stride[0]
        for group in regroup(check_stream(self.spec, groups, frames), frames, size, size):
            memory = memory or Memory(batch=len(group))
            with exact_kernels(self._device):
                latent = self._encode_group(self._from_pixels(group), memory)[:, :, None]
            yield latent

    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to latents [B, C, t, h, w]."""
        thw = check_values(self.spec, values_BTHWC)
        return self._encode(values_BTHWC, thw, self._from_values)

    def _from_pixels(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        return to_values(pixels_BTHWC, self._levels)

    def _from_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        values = to_range(values_BTHWC, self.spec, self._device, self._dtype)
        return values.transpose(1, 2).contiguous()

    def _encode(
        self, clips_BTHWC: torch.Tensor, thw: tuple[int, int, int], prepare: _Prepare
    ) -> torch.Tensor:
        memory = Memory(batch=len(clips_BTHWC))
        with exact_kernels(self._device):
            latents = torch.stack(
                [
                    self._encode_group(prepare(group), memory)
                    for group in torch.split(clips_BTHWC, self.spec.stride[0], dim=1)
                ],
                dim=2,
            )
        check_encoded(self.spec, latents, (len(clips_BTHWC), self.spec.channels, *thw))
        return latents

    def _encode_group(self, values_BTCHW: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Return the one latent frame [B, C, h, w] of a group of frames."""
        frames = values_BTCHW.flatten(0, 1)
        return self._model.encoder.run(F.pixel_unshuffle(frames, self._variant.patch), memory)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, t, h, w] to uint8 pixels [B, T, H, W, 3] on the CPU.

        T is 4 t - 3 (LTX: 8 t - 7): see the module. taecvx gives all 4 t if t is even.
        """
        return self._decode(latents_BCthw, to_pixels)

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, t, h, w] to float32 [B, T, H, W, 3], clamped to [-1, 1]; T as `decode`."""
        return self._decode(latents_BCthw, lambda v: from_range(v.transpose(1, 2), self.spec))

    def _decode(self, latents_BCthw: torch.Tensor, finish: _Prepare) -> torch.Tensor:
        """Return what `finish` makes, [B, T, H, W, 3], of decoded values [B, T, 3, H, W]."""
        check_latents(self.spec, latents_BCthw)
        memory = Memory(batch=len(latents_BCthw))
        with exact_kernels(self._device):
            latents = latents_BCthw.to(self._device, self._dtype)
            groups = [finish(self._decode_latent(latent, memory)) for latent in latents.unbind(2)]
            return torch.cat(groups, dim=1)[:, self._variant.dropped(len(groups)) :].contiguous()

    def _decode_latent(self, latent_BChw: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Return the values [B, T, 3, H, W] that the decoder makes from one latent frame."""
        frames = self._model.decoder.run(latent_BChw, memory)
        values = F.pixel_shuffle(frames, self._variant.patch)
        return torch.unflatten(values, 0, (len(latent_BChw), -1))
