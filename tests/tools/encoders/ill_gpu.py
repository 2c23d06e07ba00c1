"""An encoder outside the project whose process loses its GPU: one of two of a run, at its third clip.

As after an error of CUDA that sticks, every later call of that process fails, and at once. A new process is
well. The two wait for each other, so that there is one that can do what the other cannot.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentcache.config.base import Section
from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from tests.tools.encoders import deadly, meeting

#: A healthy worker takes so long for a clip.
ENCODE_S = 0.2


class Config(Section):
    """folder: `ill` appears in it. says: what the process says of its illness."""

    kind: str
    folder: str
    says: str
    store: str = "mean"


def describe(config: Config, *, dtype: str) -> LatentSpec:
    return dct.describe(deadly.INNER, dtype=dtype)


def identity(config: Config) -> Mapping[str, Any]:
    return {"kind": "ill_gpu"}


class _Ill:
    def __init__(self, inner: Encoder, config: Config) -> None:
        self.spec = inner.spec
        self._config = config
        self._inner, self._num, self._is_ill = inner, 0, False

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self._num += 1
        if self._num == 1:
            meeting.wait_for(Path(self._config.folder, "processes"), 2)
        if self._num == 3:
            try:
                (Path(self._config.folder) / "ill").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                self._is_ill = True
        if self._is_ill:
            raise RuntimeError(self._config.says)
        time.sleep(ENCODE_S)
        return self._inner.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Ill(dct.build(deadly.INNER, spec=spec, device=device), config)
