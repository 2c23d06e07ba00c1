"""Stable Diffusion 3 and 3.5: two CLIPs side by side, zeros up to T5's width, then T5, all attended."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.clip import ClipPart
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import t5_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

_PROJECTED = ("CLIPTextModelWithProjection",)


class Settings(TextSettings):
    """`length` is T5's."""

    family: Literal["sd3"]
    length: Positive = Field(default=256, description="T5's tokens.")


class Encoder(Family[Settings]):
    """States [77 + 256, 4096] of the text and of its padding, and `pooled` [2048]."""

    source = "diffusers StableDiffusion3Pipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.clips = tuple(
            ClipPart(checkpoint, suffix, classes=_PROJECTED) for suffix in ("", "_2")
        )
        self.t5 = t5_part(checkpoint, suffix="_3")
        self.parts = (*(clip.part for clip in self.clips), self.t5)
        rows = self.clips[0].length + settings.length
        self.arrays = {
            "states": TextArray((rows, self.t5.width), padding="attended"),
            "pooled": TextArray((sum(clip.projected for clip in self.clips),), padding=None),
        }
        self.facts = {
            "length": settings.length,
            "mask": False,
            "layer": "last_hidden_state",
            "clip_length": self.clips[0].length,
            "clip_layer": -2,
        }

    def states(self, text: str) -> EncodedText:
        """Encode with the three models; all rows are kept. Tokens are T5's, which sees the most."""
        layers, vectors = zip(
            *(clip.penultimate(clip.tokens(text)) for clip in self.clips), strict=True
        )
        tokens = self.t5.tokens(text, length=self.settings.length)
        t5_states = self.t5.run(tokens).last_hidden_state[0]
        clip_states = torch.cat(layers, dim=-1)
        missing = t5_states.shape[-1] - clip_states.shape[-1]
        clip_states = torch.nn.functional.pad(clip_states, (0, missing))
        arrays = {
            "states": torch.cat([clip_states, t5_states], dim=0),
            "pooled": torch.cat(vectors, dim=-1),
        }
        return EncodedText(arrays, tokens.num_own, tokens.lost)
