"""FLUX.2: Mistral Small 3 in a chat, three layers joined; padding's states are attended."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import TextPart
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ConfigError

SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
LAYERS = (10, 20, 30)
#: The mark of an image, which the reference takes out of captions.
_IMAGE = "[IMG]"


class Settings(TextSettings):
    """`length` includes the chat template, nothing of which is cut."""

    family: Literal["flux2"]
    length: Positive = Field(default=512, description="Tokens, with the template's.")


class Encoder(Family[Settings]):
    """States [512, 15360] of the chat and of its padding."""

    source = "diffusers Flux2Pipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.mistral = TextPart(
            settings.checkpoint(),
            "text_encoder",
            "tokenizer",
            classes=("Mistral3ForConditionalGeneration",),
            special=("bos", "pad"),
            side=None,  # all rows are kept, wherever padding stands
        )
        self.parts = (self.mistral,)
        self._check_depth()
        self._check_beginning()
        self.mistral.check_chat_room(_messages, settings.length)
        width = len(LAYERS) * self.mistral.width
        self.arrays = {
            "states": TextArray(
                (settings.length, width),
                padding="attended",
                side=self.mistral.tokenizer.padding_side,
            )
        }
        self.facts = {
            "length": settings.length,
            "system": SYSTEM,
            "layers": list(LAYERS),
            "mask": True,
        }

    def states(self, text: str) -> EncodedText:
        """Encode the chat with the mask, and join three layers; all rows are kept."""
        tokens = self.mistral.chat_tokens(
            _messages(text), length=self.settings.length, continued=False
        )
        layers = self.mistral.run(tokens, mask=tokens.mask, layers=True).hidden_states
        states = torch.cat([layers[layer] for layer in LAYERS], dim=-1)[0]
        return EncodedText({"states": states}, tokens.num_own, tokens.lost)

    def _check_depth(self) -> None:
        depth = self.mistral.setting("num_hidden_layers")
        if depth < max(LAYERS):
            raise ConfigError(
                f"text_encoder: the model has {depth} layers, and FLUX.2 takes those after layers "
                f"{LAYERS}. Name the folder of FLUX.2's own text encoder."
            )

    def _check_beginning(self) -> None:
        """Raise ConfigError if the chat lacks the beginning of text, which the processor would add."""
        tokenizer = self.mistral.tokenizer
        first = self.mistral.chat_tokens(
            _messages("a"), length=self.settings.length, continued=False
        )
        own = first.ids[0][first.mask[0].bool()]
        if tokenizer.bos_token_id is not None and int(own[0]) != tokenizer.bos_token_id:
            raise ConfigError(
                "tokenizer: the chat template does not begin with the beginning of text "
                f"{tokenizer.bos_token!r}, so it is not FLUX.2's. Name the folder of FLUX.2's own."
            )


def _messages(text: str) -> list[dict[str, object]]:
    return [
        {"role": role, "content": [{"type": "text", "text": content}]}
        for role, content in (("system", SYSTEM), ("user", text.replace(_IMAGE, "")))
    ]
