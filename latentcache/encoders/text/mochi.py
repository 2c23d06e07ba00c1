"""Mochi 1: T5 with a mask; the empty text is all padding where the checkpoint says so."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import own_rows, t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings


class Settings(TextSettings):
    """`force_zeros_for_empty_prompt` is read from model_index.json if it is not set."""

    family: Literal["mochi"]
    length: Positive = Field(default=256, description="Tokens.")
    force_zeros_for_empty_prompt: bool | None = Field(
        default=None,
        description="Whether the empty text has no tokens at all; omitted: as model_index.json says.",
    )


class Encoder(Family[Settings]):
    """States [n, 4096] of the text."""

    source = "diffusers MochiPipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.t5 = t5_part(checkpoint)
        self.parts = (self.t5,)
        asked = settings.force_zeros_for_empty_prompt
        if asked is None:
            asked = bool(checkpoint.index.get("force_zeros_for_empty_prompt", False))
        self.empty_is_padding = asked
        self.arrays = {"states": TextArray((settings.length, self.t5.width), padding="mask")}
        self.facts = {
            "length": settings.length,
            "mask": True,
            "layer": "last_hidden_state",
            "force_zeros_for_empty_prompt": asked,
        }

    def states(self, text: str) -> EncodedText:
        """Encode with the mask; rows of padding are dropped."""
        if text == "" and self.empty_is_padding:
            width = self.arrays["states"].shape[1]
            empty = torch.zeros(0, width, dtype=self.dtype, device=self.device)
            return EncodedText({"states": empty}, 0, 0)
        tokens = self.t5.tokens(text, length=self.settings.length)
        states = self.t5.run(tokens, mask=tokens.mask.bool()).last_hidden_state
        return EncodedText({"states": own_rows(states, tokens)}, tokens.num_own, tokens.lost)
