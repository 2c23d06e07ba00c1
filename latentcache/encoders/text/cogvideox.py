"""CogVideoX 1.0 and 1.5: T5 without a mask anywhere; padding's states are attended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings


class Settings(TextSettings):
    """`length` is the transformer's max_text_seq_length."""

    family: Literal["cogvideox"]
    length: Positive = Field(
        default=226, description="Tokens; the transformer's max_text_seq_length."
    )


class Encoder(Family[Settings]):
    """States [226, 4096] of the text and of its padding."""

    source = "diffusers CogVideoXPipeline; CogVideo finetune/models/cogvideox_i2v/lora_trainer.py"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.t5 = t5_part(settings.checkpoint())
        self.parts = (self.t5,)
        self.arrays = {"states": TextArray((settings.length, self.t5.width), padding="attended")}
        self.facts = {"length": settings.length, "mask": False, "layer": "last_hidden_state"}

    def states(self, text: str) -> EncodedText:
        """Encode without a mask; all rows are kept."""
        tokens = self.t5.tokens(text, length=self.settings.length)
        states = self.t5.run(tokens).last_hidden_state[0]
        return EncodedText({"states": states}, tokens.num_own, tokens.lost)
