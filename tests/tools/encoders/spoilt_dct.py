"""The DCT encoder with mistakes that people make, as plug-ins: `tests.tools.encoders.spoilt_dct:bgr`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from latentcache.config.base import Section
from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.dct import CHANNELS, DCTEncoder

Change = Callable[[torch.Tensor], torch.Tensor]


class Config(Section):
    kind: str
    store: Literal["moments", "mean", "sample"] = "mean"


def describe(config: Config, *, dtype: str) -> LatentSpec:
    return dct.describe(dct.Config(kind="dct", store=config.store), dtype=dtype)


def identity(config: Config) -> Mapping[str, Any]:
    return {"kind": config.kind, "store": config.store}


class Spoilt(DCTEncoder):
    """Pixels are changed before, latents after, or decoding raises."""

    def __init__(
        self,
        spec: LatentSpec,
        *,
        pixels: Change = lambda pixels: pixels,
        latents: Change = lambda latents: latents,
        error: Exception | None = None,
    ) -> None:
        super().__init__(spec, torch.device("cpu"))
        self._pixels, self._latents, self._error = pixels, latents, error

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        encoded = super().encode(self._pixels(pixels_BTHWC).contiguous())
        return torch.cat([self._latents(encoded[:, :CHANNELS]), encoded[:, CHANNELS:]], dim=1)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        if self._error is not None:
            raise self._error
        return super().decode(latents_BCthw)


def _build(**changes: Any) -> Callable[..., Spoilt]:
    def build(config: Config, *, spec: LatentSpec, device: torch.device) -> Spoilt:
        return Spoilt(spec, **changes)

    return build


sound = _build()
#: Pixels of [0, 1] for a model that takes [-1, 1]: the upper half of its range.
unit_range = _build(pixels=lambda pixels: pixels // 2 + 128)
bgr = _build(pixels=lambda pixels: pixels.flip(-1))
negative = _build(pixels=lambda pixels: 255 - pixels)
normalised = _build(latents=lambda latents: latents / 16)
other_weights = _build(latents=lambda latents: latents.roll(1, dims=1))
no_memory = _build(error=torch.OutOfMemoryError("CUDA out of memory"))
no_decoder = _build(error=NotImplementedError("there is no decoder"))
