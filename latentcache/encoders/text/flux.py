"""FLUX.1 and Kontext: T5 without a mask, padding's states attended, and CLIP's pooled vector."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.clip import ClipPart
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings


class Settings(TextSettings):
    """`length`: 512 for FLUX.1-dev and Kontext, 256 for schnell."""

    family: Literal["flux"]
    length: Positive = Field(default=512, description="Tokens; 256 for FLUX.1-schnell.")


class Encoder(Family[Settings]):
    """States [512, 4096] of the text and of its padding, and `pooled` [768]."""

    source = "diffusers FluxPipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.clip = ClipPart(checkpoint)
        self.t5 = t5_part(checkpoint, suffix="_2")
        self.parts = (self.clip.part, self.t5)
        self.arrays = {
            "states": TextArray((settings.length, self.t5.width), padding="attended"),
            "pooled": TextArray((self.clip.width,), padding=None),
        }
        self.facts = {
            "length": settings.length,
            "mask": False,
            "layer": "last_hidden_state",
            "clip_length": self.clip.length,
        }

    def states(self, text: str) -> EncodedText:
        """Encode with both models; all rows are kept. Tokens are T5's."""
        tokens = self.t5.tokens(text, length=self.settings.length)
        arrays = {
            "states": self.t5.run(tokens).last_hidden_state[0],
            "pooled": self.clip.pooled(self.clip.tokens(text)),
        }
        return EncodedText(arrays, tokens.num_own, tokens.lost)
