"""What an image tower is to the rest of latentcache: frames of one clip in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class ImageTower(Protocol):
    """An image tower on its device, in its computing dtype."""

    arrays: Mapping[str, tuple[int, ...]]
    """The arrays' shapes by name. The first is the field itself."""

    num_frames: int
    """How many frames of a clip it takes: 1, or the first and the last."""

    def encode(self, frames_NHWC: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Encode the frames of one clip, uint8 [num_frames, H, W, 3] of any size, by themselves."""
        ...

    def recipe(self) -> dict[str, object]:
        """All that determines the values: classes, files' sha256, the processor and its backend."""
        ...
