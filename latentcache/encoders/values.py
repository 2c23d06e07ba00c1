"""Pixel values: what an encoder decodes and encodes without rounding to the 256 levels of uint8.

Encoders take different ranges. Values are float32 [B, T, H, W, 3] in [-1, 1] for all of them, so that what
one decodes another can encode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, cast

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders.protocol import Encoder
from latentcache.errors import EncoderError

LOW, HIGH = -1.0, 1.0


class ValueEncoder(Encoder, Protocol):
    """An encoder of pixel values too, as all encoders of this package are."""

    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1], of any float type, to what `encode` gives."""
        ...

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode as `decode` does, to float32 [B, T, H, W, 3] clamped to [-1, 1], on its device."""
        ...


def of_values(encoder: Encoder) -> ValueEncoder:
    """Return an encoder as one of values. Raises EncoderError if it has no such methods."""
    missing = [n for n in ("encode_values", "decode_values") if not hasattr(encoder, n)]
    if missing:
        raise EncoderError(
            f"{encoder.spec.model_class} has no {' and no '.join(missing)}, so it takes no part in making "
            "a cache of another one's clips: with uint8 pixels between the two, the latents would be "
            "those of another transform. Add it: see latentcache.encoders.values.ValueEncoder."
        )
    return cast(ValueEncoder, encoder)


class EncodesValues:
    """An encoder whose `encode` takes values: for what runs any encoder over pixels of that layout."""

    def __init__(self, encoder: Encoder) -> None:
        self.spec = encoder.spec
        self._encoder = of_values(encoder)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode float values [B, T, H, W, 3]."""
        return self._encoder.encode_values(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode to float32 values [B, T, H, W, 3]."""
        return self._encoder.decode_values(latents_BCthw)


def check_values(spec: LatentSpec, values_BTHWC: torch.Tensor) -> tuple[int, int, int]:
    """Return the latent's (t, h, w) for a batch of values.

    Raises EncoderError if the batch is not floats [B, T, H, W, 3], and GeometryError if the encoder
    cannot take its T, H or W.
    """
    shape = tuple(values_BTHWC.shape)
    if not values_BTHWC.is_floating_point() or len(shape) != 5 or shape[-1] != 3:
        raise EncoderError(
            f"{spec.model_class} encodes values in [-1, 1], floats [B, T, H, W, 3], "
            f"not {values_BTHWC.dtype} {list(shape)}"
        )
    grid = replace(spec, stored="mean", ids=None) if spec.ids is not None else spec
    *_, t, h, w = grid.latent_shape(*shape[1:4])
    return t, h, w


def to_range(
    values_BTHWC: torch.Tensor, spec: LatentSpec, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return contiguous [B, 3, T, H, W] in a model's range of pixels and dtype, computed in float32."""
    low, high = spec.pixel_range
    values = values_BTHWC.to(device, torch.float32).permute(0, 4, 1, 2, 3)
    if (low, high) != (LOW, HIGH):
        values = (values - LOW) * ((high - low) / (HIGH - LOW)) + low
    return values.to(dtype).contiguous()


def from_range(values_BCTHW: torch.Tensor, spec: LatentSpec) -> torch.Tensor:
    """Return a model's output [B, 3, T, H, W] as float32 [B, T, H, W, 3], clamped to [-1, 1]."""
    low, high = spec.pixel_range
    values = values_BCTHW.float().clamp(low, high)
    if (low, high) != (LOW, HIGH):
        values = ((values - low) * ((HIGH - LOW) / (high - low)) + LOW).clamp(LOW, HIGH)
    return values.permute(0, 2, 3, 4, 1)
