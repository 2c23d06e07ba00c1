"""Stable Diffusion XL: two CLIPs side by side, and the second one's vector."""

from __future__ import annotations

from typing import Literal

import torch

from latentcache.encoders.text.clip import ClipPart
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings


class Settings(TextSettings):
    """CLIP's length is its own."""

    family: Literal["sdxl"]


class Encoder(Family[Settings]):
    """States [77, 2048] of the text and of its padding, and `pooled` [1280]."""

    source = "diffusers StableDiffusionXLPipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.clips = (
            ClipPart(checkpoint),
            ClipPart(checkpoint, "_2", classes=("CLIPTextModelWithProjection",)),
        )
        self.parts = tuple(clip.part for clip in self.clips)
        width = sum(clip.width for clip in self.clips)
        self.arrays = {
            "states": TextArray((self.clips[0].length, width), padding="attended"),
            "pooled": TextArray((self.clips[1].projected,), padding=None),
        }
        self.facts = {"mask": False, "clip_length": self.clips[0].length, "clip_layer": -2}

    def states(self, text: str) -> EncodedText:
        """Encode with both models; all rows are kept. Tokens are the first one's."""
        tokens = [clip.tokens(text) for clip in self.clips]
        (first, _), (second, pooled) = (
            clip.penultimate(own) for clip, own in zip(self.clips, tokens, strict=True)
        )
        arrays = {"states": torch.cat([first, second], dim=-1), "pooled": pooled}
        return EncodedText(arrays, tokens[0].num_own, tokens[0].lost)
