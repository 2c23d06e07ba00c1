"""HunyuanVideo 1.5, text: Qwen2.5-VL in a chat, the third layer from the end; ByT5 of quoted words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import TextPart, conversation, own_rows, t5_part, without_first
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

SYSTEM = (
    "You are a helpful assistant. Describe the video by detailing the following aspects:"
    "         1. The main content and theme of the video."
    "         2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "         3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects."
    "         4. background environment, light, style and atmosphere."
    "         5. camera angles, movements, and transitions used in the video."
)
CUT = 108
#: Not normed, which the last one is.
LAYER = -3


class Settings(TextSettings):
    """Lengths are counted after the template."""

    family: Literal["hunyuan_video15"]
    length: Positive = Field(default=1000, description="Qwen's tokens, without the template's.")
    glyph_length: Positive = Field(default=256, description="ByT5's tokens of the quoted words.")


class Encoder(Family[Settings]):
    """States [n, 3584] of the text, and `glyphs` [m, 1472] of what is quoted in it, often none."""

    source = "diffusers HunyuanVideo15Pipeline"
    length_keys: ClassVar[Mapping[str, str]] = {"glyphs": "glyph_length"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.qwen = TextPart(
            checkpoint,
            "text_encoder",
            "tokenizer",
            classes=("Qwen2_5_VLTextModel",),
            special=("bos",),
        )
        self.qwen.check_chat_cut(SYSTEM, CUT)
        # Its embedding has rows for fonts and colours, which not every tokenizer of it names.
        self.byt5 = t5_part(checkpoint, suffix="_2", padded=False)
        self.parts = (self.qwen, self.byt5)
        self.arrays = {
            "states": TextArray((settings.length, self.qwen.width), padding="mask"),
            "glyphs": TextArray((settings.glyph_length, self.byt5.width), padding="mask"),
        }
        self.facts = {
            "length": settings.length,
            "glyph_length": settings.glyph_length,
            "system": SYSTEM,
            "cut": CUT,
            "layer": LAYER,
            "mask": True,
        }

    def states(self, text: str) -> EncodedText:
        """Encode the text in its chat, and what is quoted in it. Tokens are Qwen's; both may lose some."""
        whole = self.qwen.chat_tokens(
            conversation(SYSTEM, text or " "), length=self.settings.length + CUT, continued=True
        )
        states = self.qwen.run(whole, mask=whole.mask, layers=True).hidden_states[LAYER]
        tokens = without_first(whole, CUT)
        glyphs, num_lost = self._glyphs(text)
        arrays = {"states": own_rows(states[:, CUT:], tokens), "glyphs": glyphs}
        return EncodedText(arrays, tokens.num_own, tokens.lost + num_lost)

    def _glyphs(self, text: str) -> tuple[torch.Tensor, int]:
        """Return the states of what is quoted, and how many of its tokens are cut off."""
        quoted = glyph_text(text)
        if quoted is None:
            width = self.arrays["glyphs"].shape[1]
            return torch.zeros(0, width, dtype=self.dtype, device=self.device), 0
        tokens = self.byt5.tokens(quoted, length=self.settings.glyph_length)
        states = self.byt5.run(tokens, mask=tokens.mask.float()).last_hidden_state
        return own_rows(states, tokens), tokens.lost


def glyph_text(text: str) -> str | None:
    """Return what ByT5 is given: each quoted part once, or None if nothing is quoted."""
    found = [straight or curly for straight, curly in re.findall(r"\"(.*?)\"|“(.*?)”", text)]
    parts = list(dict.fromkeys(found))
    return "".join(f'Text "{part}". ' for part in parts) if parts else None
