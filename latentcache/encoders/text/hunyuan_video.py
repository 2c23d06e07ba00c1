"""HunyuanVideo, text only: LLaMA in a template, the third layer from the end, and CLIP's pooled vector."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.clip import ClipPart
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import TextPart, own_rows, without_first
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
CUT = 95
#: Not normed, which the last one is.
LAYER = -3


class Settings(TextSettings):
    """`length` is counted after the template."""

    family: Literal["hunyuan_video"]
    length: Positive = Field(default=256, description="Tokens, without the template's.")


class Encoder(Family[Settings]):
    """States [n, 4096] of the text and the template's end, and `pooled` [768]."""

    source = "diffusers HunyuanVideoPipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.llama = TextPart(
            checkpoint, "text_encoder", "tokenizer", classes=("LlamaModel",), special=("bos",)
        )
        self.llama.check_cut(TEMPLATE, CUT)
        self.clip = ClipPart(checkpoint, "_2")
        self.parts = (self.llama, self.clip.part)
        self.arrays = {
            "states": TextArray((settings.length, self.llama.width), padding="mask"),
            "pooled": TextArray((self.clip.width,), padding=None),
        }
        self.facts = {
            "length": settings.length,
            "template": TEMPLATE,
            "cut": CUT,
            "layer": LAYER,
            "mask": True,
            "clip_length": self.clip.length,
        }

    def states(self, text: str) -> EncodedText:
        """Encode the text in its template, and the text itself with CLIP."""
        whole = self.llama.tokens(TEMPLATE.format(text), length=self.settings.length + CUT)
        states = self.llama.run(whole, mask=whole.mask, layers=True).hidden_states[LAYER]
        tokens = without_first(whole, CUT)
        arrays = {
            "states": own_rows(states[:, CUT:], tokens),
            "pooled": self.clip.pooled(self.clip.tokens(text)),
        }
        return EncodedText(arrays, tokens.num_own, tokens.lost)
