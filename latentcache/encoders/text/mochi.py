"""Mochi 1: T5 with a mask; the empty text is all padding where the checkpoint says so."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.pretrained.files import Checkpoint
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import own_rows, t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ConfigError

_KEY = "force_zeros_for_empty_prompt"


class Settings(TextSettings):
    """`force_zeros_for_empty_prompt` is required where no model_index.json says it."""

    family: Literal["mochi"]
    length: Positive = Field(default=256, description="Tokens.")
    force_zeros_for_empty_prompt: bool | None = Field(
        default=None,
        description="Whether the empty text has no tokens at all; omitted: as the model_index.json in "
        "`model` says.",
    )


class Encoder(Family[Settings]):
    """States [n, 4096] of the text."""

    source = "diffusers MochiPipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.t5 = t5_part(checkpoint)
        self.parts = (self.t5,)
        self.empty_is_padding = _empty_is_padding(settings, checkpoint)
        self.arrays = {"states": TextArray((settings.length, self.t5.width), padding="mask")}
        self.facts = {
            "length": settings.length,
            "mask": True,
            "layer": "last_hidden_state",
            _KEY: self.empty_is_padding,
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


def _empty_is_padding(settings: Settings, checkpoint: Checkpoint) -> bool:
    """Return whether the empty text has no tokens. Raises ConfigError if nothing says so."""
    asked = settings.force_zeros_for_empty_prompt
    if asked is not None:
        return asked
    if not checkpoint.index:
        raise ConfigError(
            f"{_KEY}: required where `model` has no model_index.json, which says it: it decides what the "
            "empty caption is. Set it as the model's own model_index.json does; without it there, false."
        )
    return bool(checkpoint.index.get(_KEY, False))
