"""An encoder outside the project that has the same warning for every clip."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from latentcache.config.base import Section
from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder

WARNING = "clips are encoded by two halves, for there is too little memory"
INNER = dct.Config(kind="dct", store="mean")


class Config(Section):
    kind: str
    store: str = "mean"


def describe(config: Config, *, dtype: str) -> LatentSpec:
    return dct.describe(INNER, dtype=dtype)


def identity(config: Config) -> Mapping[str, Any]:
    return {"kind": "talkative"}


class _Talkative:
    def __init__(self, inner: Encoder) -> None:
        self.spec = inner.spec
        self._inner = inner

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        logging.getLogger(__name__).warning(WARNING)
        return self._inner.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Talkative(dct.build(INNER, spec=spec, device=device))
