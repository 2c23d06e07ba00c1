"""What an encoder is, and what its module exposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from latentcache.core.spec import LatentSpec

if TYPE_CHECKING:
    from pydantic import BaseModel


class Encoder(Protocol):
    """A built encoder on its device. Not thread-safe: callers take turns.

    Deterministic: the same pixels give the same bits on the same device. Stateless: an exception in one
    call must not change the result of the next. A clip's bits may depend on the number of clips in its
    batch, but not on what the others are.

    An encoder whose `encode` also takes pixels on its own device says so by an attribute
    `takes_device_pixels = True`: on a GPU they are then copied while the batch before is encoded.
    """

    spec: LatentSpec

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels [B, T, H, W, 3] (on the CPU, possibly pinned).

        Returns un-normalised output on the encoder's device, in its compute dtype. With a posterior:
        [B, 2C, t, h, w] mean and log-variance (clamped as the model's own distribution clamps it).
        Without one: [B, C, t, h, w]. Discrete encoders: ids [B, t, h, w].
        """
        ...

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents (means) to uint8 pixels [B, T, H, W, 3] on the CPU."""
        ...


class MaskedEncoder(Encoder, Protocol):
    """An encoder that can encode frames of zeros, for conditions of image-to-video models."""

    def encode_masked(self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool]) -> torch.Tensor:
        """Encode as `encode` does, with these of the T frames 0.0 in the model's own range of pixels.

        No uint8 pixel has that value in a range from -1 to 1.
        """
        ...


class EncoderModule(Protocol):
    """What a module under `latentcache/encoders` exposes."""

    Config: type[BaseModel]

    def describe(self, config: Any, *, dtype: str) -> LatentSpec:
        """Return the spec without loading weights into memory.

        dtype: of stored latents; discrete tokenizers use the dtype of their IdSpec instead.

        Raises ConfigError or EncoderError whose message says what to do.
        """
        ...

    def identity(self, config: Any) -> Mapping[str, Any]:
        """Return the encoder's part of the recipe: everything that determines the latents' values."""
        ...

    def build(self, config: Any, *, spec: LatentSpec, device: torch.device) -> Encoder:
        """Load the weights and return the encoder on `device`."""
        ...
