"""Cosmos Predict 2.5 and Transfer 2.5: Qwen2.5-VL in a chat, all layers normed and joined."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import qwen_part
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
#: What keeps a state that does not vary from a division by zero.
EPSILON = 1e-8


class Settings(TextSettings):
    """`length` includes the chat template, nothing of which is cut."""

    family: Literal["cosmos25"]
    length: Positive = Field(default=512, description="Tokens, with the template's.")


class Encoder(Family[Settings]):
    """States [512, 100352] of the chat and of its padding: 28 layers of 3584."""

    source = "diffusers Cosmos2_5_PredictBasePipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.qwen = qwen_part(settings.checkpoint())
        self.parts = (self.qwen,)
        self.qwen.check_chat_room(_messages, settings.length)
        width = self.qwen.setting("num_hidden_layers") * self.qwen.width
        self.arrays = {
            "states": TextArray(
                (settings.length, width),
                padding="attended",
                side=self.qwen.tokenizer.padding_side,
            )
        }
        self.facts = {
            "length": settings.length,
            "system": SYSTEM,
            "layers": "all, normed",
            "mask": False,
        }

    def states(self, text: str) -> EncodedText:
        """Encode the chat without a mask, as the reference does; all rows of all layers are kept."""
        tokens = self.qwen.chat_tokens(
            _messages(text), length=self.settings.length, continued=False
        )
        layers = self.qwen.run(tokens, layers=True).hidden_states[1:]
        states = torch.cat([_normed(layer) for layer in layers], dim=-1)[0]
        return EncodedText({"states": states}, tokens.num_own, tokens.lost)


def _normed(layer: torch.Tensor) -> torch.Tensor:
    mean, deviation = layer.mean(dim=-1, keepdim=True), layer.std(dim=-1, keepdim=True)
    return (layer - mean) / (deviation + EPSILON)


def _messages(text: str) -> list[dict[str, object]]:
    return [
        {"role": role, "content": [{"type": "text", "text": content}]}
        for role, content in (("system", SYSTEM), ("user", text))
    ]
