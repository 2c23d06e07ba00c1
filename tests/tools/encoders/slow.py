"""An encoder outside the project that takes its time, so that there is some to disturb its run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from tests.tools.encoders import deadly

Config = deadly.Config
describe = deadly.describe
#: Seconds that a clip takes, from the environment of the run.
ENCODE_S = "TEST_ENCODE_S"


def identity(config: deadly.Config) -> Mapping[str, Any]:
    return {"kind": "slow"}


class _Slow:
    def __init__(self, inner: Encoder) -> None:
        self.spec = inner.spec
        self._inner = inner

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get(ENCODE_S, "0.2")))
        return self._inner.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: deadly.Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _Slow(dct.build(deadly.INNER, spec=spec, device=device))
