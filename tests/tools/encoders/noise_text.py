"""A text encoder outside the project: noise that follows from the text, a token per word and one more.

`length` and `width` are those of the states, which are as large, and compress as badly, as a real one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from latentcache.encoders.text.protocol import EncodedText, TextArray


class NoiseText:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._length, self._width = int(settings["length"]), int(settings["width"])
        self.arrays = {"states": TextArray((self._length, self._width), "zeros")}

    def recipe(self) -> dict[str, object]:
        return {"class": "NoiseText", "length": self._length, "width": self._width}

    def encode(self, text: str) -> EncodedText:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
        num = min(len(text.split()) + 1, self._length)
        noise = torch.randn(num, self._width, generator=torch.Generator().manual_seed(seed))
        return EncodedText({"states": noise}, tokens=num, lost_tokens=0)


def describe(settings: Mapping[str, Any]) -> tuple[dict[str, TextArray], dict[str, object]]:
    made = NoiseText(settings)
    return made.arrays, made.recipe()


def build(settings: Mapping[str, Any], device: torch.device) -> NoiseText:
    return NoiseText(settings)
