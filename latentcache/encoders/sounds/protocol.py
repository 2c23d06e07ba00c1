"""What an encoder of sound is to the rest of latentcache: a clip's samples in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class SoundArray:
    """One array that an encoder gives per clip: [steps, width], of a clip of the longest span."""

    shape: tuple[int, int]
    dtype: str


class SoundEncoder(Protocol):
    """An encoder of sound on its device, in its computing dtype."""

    arrays: Mapping[str, SoundArray]
    """The arrays by name. The first is the field itself."""

    rate: int
    """Samples per second that it takes."""

    channels: int
    """Channels that it takes: 1 or 2."""

    def encode(self, samples_NC: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Encode one clip's sound, float32 [n, channels] in [-1, 1], by itself: [steps, width].

        Raises ClipError if it is too short to give a step, or states are not finite.
        """
        ...

    def recipe(self) -> dict[str, object]:
        """All that determines the values: classes, files' sha256, layer, rate."""
        ...
