"""Cosmos 1 and Cosmos Predict 2: T5-11B with a mask, then zeros up to 512, which the model attends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import own_rows, t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings


class Settings(TextSettings):
    """`length`: the zeros past the text are part of the condition, so another length is another one."""

    family: Literal["cosmos"]
    length: Positive = Field(default=512, description="Tokens; Cosmos is trained at 512.")


class Encoder(Family[Settings]):
    """States [n, 1024] of the text, zeros up to `length`."""

    source = "diffusers CosmosTextToWorldPipeline and Cosmos2TextToImagePipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.t5 = t5_part(settings.checkpoint())
        self.parts = (self.t5,)
        self.arrays = {"states": TextArray((settings.length, self.t5.width), padding="zeros")}
        self.facts = {"length": settings.length, "mask": True, "layer": "last_hidden_state"}

    def states(self, text: str) -> EncodedText:
        """Encode with the mask; rows of padding are dropped."""
        tokens = self.t5.tokens(text, length=self.settings.length)
        states = self.t5.run(tokens, mask=tokens.mask.bool()).last_hidden_state
        return EncodedText({"states": own_rows(states, tokens)}, tokens.num_own, tokens.lost)
