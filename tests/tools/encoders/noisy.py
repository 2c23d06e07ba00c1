"""An encoder outside the project whose bits differ from process to process, as those of two GPUs do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from tests.tools.encoders import deadly

Config = deadly.Config
describe = deadly.describe
#: Of the noise, beside latents of about 1.
SCALE = 0.02


def identity(config: deadly.Config) -> Mapping[str, Any]:
    return {"kind": "noisy"}


class _Noisy:
    def __init__(self, inner: Encoder) -> None:
        self.spec = inner.spec
        self._inner = inner

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        latents = self._inner.encode(pixels_BTHWC)
        seeded = torch.Generator().manual_seed(os.getpid())
        return latents + SCALE * torch.randn(latents.shape, generator=seeded).to(latents)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: deadly.Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Noisy(dct.build(deadly.INNER, spec=spec, device=device))
