"""An encoder outside the project that waits until others like it have a clip, so that each has work."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentcache.config.base import Section
from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from latentcache.errors import EncoderError
from tests.tools.encoders import deadly

PATIENCE_S = 280.0


class Config(Section):
    """folder: where each process leaves a file; processes: how many are waited for."""

    kind: str
    folder: str
    processes: int
    store: str = "mean"


def describe(config: Config, *, dtype: str) -> LatentSpec:
    return dct.describe(deadly.INNER, dtype=dtype)


def identity(config: Config) -> Mapping[str, Any]:
    return {"kind": "meeting"}


def wait_for(folder: Path, processes: int) -> None:
    """Return when so many processes have left a file in the folder, this one included."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    ends = time.monotonic() + PATIENCE_S
    while len(list(folder.iterdir())) < processes:
        if time.monotonic() > ends:
            raise EncoderError("nobody else came")
        time.sleep(0.02)


class _Meeting:
    def __init__(self, inner: Encoder, config: Config) -> None:
        self.spec = inner.spec
        self._inner = inner
        self._config = config

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        wait_for(Path(self._config.folder), self._config.processes)
        return self._inner.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Meeting(dct.build(deadly.INNER, spec=spec, device=device), config)
