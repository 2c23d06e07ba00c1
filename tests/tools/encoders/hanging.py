"""An encoder that hangs at one clip, the first time, until a file appears: as a GPU or a driver may."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from tests.tools.encoders import deadly

Config = deadly.Config
describe = deadly.describe
#: A folder, from the environment of the run: `hangs` appears in it, and `wake` is waited for.
FOLDER = "TEST_HANG_FOLDER"


def identity(config: deadly.Config) -> Mapping[str, Any]:
    return {"kind": "hanging"}


class _Hanging:
    def __init__(self, inner: Encoder) -> None:
        self.spec = inner.spec
        self._inner, self._folder, self._num = inner, Path(os.environ[FOLDER]), 0

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        encoded = self._inner.encode(pixels_BTHWC)
        self._num += 1
        if self._num == 2 and not (self._folder / "hangs").exists():
            (self._folder / "hangs").touch()
            while not (self._folder / "wake").exists():
                time.sleep(0.05)
            (self._folder / "woke").touch()
        return encoded

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: deadly.Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Hanging(dct.build(deadly.INNER, spec=spec, device=device))
