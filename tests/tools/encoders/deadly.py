"""An encoder outside the project that kills its process at a black video, and fails at a white one."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import torch

from latentcache.config.base import Section
from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from latentcache.errors import EncoderError


class Config(Section):
    kind: str
    store: str = "mean"


INNER = dct.Config(kind="dct", store="mean")


def describe(config: Config, *, dtype: str) -> LatentSpec:
    return dct.describe(INNER, dtype=dtype)


def identity(config: Config) -> Mapping[str, Any]:
    return {"kind": "deadly"}


class _Deadly:
    def __init__(self, inner: Encoder) -> None:
        self.spec = inner.spec
        self._inner = inner

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        if int(pixels_BTHWC.max()) < 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if int(pixels_BTHWC.min()) > 235:
            raise EncoderError("white is too much")
        return self._inner.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Deadly(dct.build(INNER, spec=spec, device=device))
