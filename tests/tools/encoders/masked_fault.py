"""An encoder outside the project whose conditions of zeros fail for bright clips, as FAULT says.

Its latents never fail: whatever goes wrong is the fault of a field that is made of the same pixels.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from latentcache.errors import StorageError
from tests.tools.encoders import deadly

Config = deadly.Config
describe = deadly.describe
#: From the environment of the run: error, exit, nan, storage, kill or hang; empty for none.
FAULT = "TEST_MASKED_FAULT"
#: The first frame of a clip is bright if it is brighter on average.
BRIGHT = 180


def identity(config: deadly.Config) -> Mapping[str, Any]:
    return {"kind": "masked_fault"}


class _MaskedFault:
    def __init__(self, inner: Any) -> None:
        self.spec = inner.spec
        self._inner = inner

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        return self._inner.encode(pixels_BTHWC)  # type: ignore[no-any-return]

    def encode_masked(self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool]) -> torch.Tensor:
        encoded: torch.Tensor = self._inner.encode_masked(pixels_BTHWC, zeros)
        if pixels_BTHWC[0, 0].float().mean() > BRIGHT:
            match os.environ.get(FAULT):
                case "error":
                    raise ValueError("size mismatch")
                case "exit":
                    raise SystemExit(3)
                case "storage":
                    raise StorageError("no room for the weights")
                case "nan":
                    return encoded * float("nan")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    threading.Event().wait()
        return encoded

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)  # type: ignore[no-any-return]


def build(config: deadly.Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    return _MaskedFault(dct.build(deadly.INNER, spec=spec, device=device))
