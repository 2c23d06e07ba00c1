"""An encoder for tests: the weightless one, as if on a GPU that has memory for 5 frames of 32x48 pixels."""

from __future__ import annotations

from typing import Any, Literal

import torch

from latentcache.config.base import Section
from latentcache.encoders import dct
from latentcache.encoders.dct import describe, identity

__all__ = ["Config", "build", "describe", "identity"]

LIMIT = 5 * 32 * 48


class Config(Section):
    kind: str
    store: Literal["mean"] = "mean"


class _FullGPU(dct.DCTEncoder):
    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        if pixels_BTHWC.numel() // 3 > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(pixels_BTHWC)


def build(config: Any, *, spec: Any, device: torch.device) -> _FullGPU:
    return _FullGPU(spec, device)
