"""LTX-Video: T5, with or without a mask; the transformer gets the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import own_rows, t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """How a pipeline encodes: its length, and whether the encoder gets the mask."""

    length: int
    masked: bool


_REFERENCES: Mapping[str, _Reference] = {
    "LTXPipeline": _Reference(length=128, masked=False),
    "LTXConditionPipeline": _Reference(length=256, masked=True),
}


class Settings(TextSettings):
    """`pipeline` has no default: the references give different states for the same text."""

    family: Literal["ltx"]
    pipeline: Literal["LTXPipeline", "LTXConditionPipeline"] = Field(
        description="Whose states. LTXPipeline: 128 tokens, and the encoder attends padding; "
        "LTXConditionPipeline: 256 tokens, and it does not."
    )
    length: Positive | None = Field(default=None, description="Tokens; omitted: the pipeline's.")


class Encoder(Family[Settings]):
    """States [n, 4096] of the text."""

    source = "diffusers LTXPipeline and LTXConditionPipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.t5 = t5_part(settings.checkpoint())
        self.parts = (self.t5,)
        self.reference = _REFERENCES[settings.pipeline]
        self.length = settings.length or self.reference.length
        self.arrays = {"states": TextArray((self.length, self.t5.width), padding="mask")}
        self.facts = {
            "length": self.length,
            "mask": self.reference.masked,
            "layer": "last_hidden_state",
        }

    def states(self, text: str) -> EncodedText:
        """Encode as the pipeline does; rows of padding are dropped."""
        tokens = self.t5.tokens(text, length=self.length)
        mask = tokens.mask.bool() if self.reference.masked else None
        states = self.t5.run(tokens, mask=mask).last_hidden_state
        return EncodedText({"states": own_rows(states, tokens)}, tokens.num_own, tokens.lost)
