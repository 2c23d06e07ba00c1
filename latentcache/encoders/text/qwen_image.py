"""Qwen-Image: Qwen2.5-VL in a template, the last layer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import qwen_part, template_facts, without_first
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CUT = 34
#: What the reference cuts to before it encodes, whatever length is asked for.
ENCODED_LENGTH = 1024


class Settings(TextSettings):
    """`length` is counted after the template."""

    family: Literal["qwen_image"]
    length: Annotated[int, Field(gt=0, le=ENCODED_LENGTH)] = Field(
        default=ENCODED_LENGTH, description="Tokens, without the template's, at most 1024."
    )


class Encoder(Family[Settings]):
    """States [n, 3584] of the text and the template's end."""

    source = "diffusers QwenImagePipeline"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.qwen = qwen_part(settings.checkpoint())
        self.qwen.check_cut(TEMPLATE, CUT)
        self.parts = (self.qwen,)
        self.arrays = {"states": TextArray((settings.length, self.qwen.width), padding="mask")}
        self.facts = template_facts(settings.length, TEMPLATE, CUT, mask=True)

    def states(self, text: str) -> EncodedText:
        """Encode the text in its template; rows of the template's beginning are dropped."""
        whole = self.qwen.tokens(TEMPLATE.format(text), length=ENCODED_LENGTH + CUT, padded=False)
        states = self.qwen.run(whole, mask=whole.mask, layers=True).hidden_states[-1]
        tokens = without_first(whole, CUT)
        kept = states[0, CUT:][: self.settings.length]
        return EncodedText({"states": kept}, len(kept), tokens.lost + tokens.num_own - len(kept))
