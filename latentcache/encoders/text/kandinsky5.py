"""Kandinsky 5: Qwen2.5-VL in a template, the last layer, packed; and CLIP's pooled vector."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.text.cleaning import Cleaning
from latentcache.encoders.text.clip import ClipPart
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import qwen_part, template_facts
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

TEMPLATE = "\n".join(
    [
        "<|im_start|>system\nYou are a prompt engineer. Describe the video in detail.",
        "Describe how the camera moves or shakes, describe the zoom and view angle, whether it follows the "
        "objects.",
        "Describe the location of the video, main characters or objects and their action.",
        "Describe the dynamism of the video and presented actions.",
        "Name the visual style of the video: whether it is a professional footage, user generated content, "
        "some kind of animation, video game or scren content.",
        "Describe the visual effects, postprocessing and transitions if they are presented in the video.",
        "Pay attention to the order of key actions shown in the scene.<|im_end|>",
        "<|im_start|>user\n{}<|im_end|>",
    ]
)
CUT = 128


class Settings(TextSettings):
    """`length` is counted after the template."""

    family: Literal["kandinsky5"]
    length: Positive = Field(default=512, description="Tokens, without the template's.")


class Encoder(Family[Settings]):
    """States [n, 3584] of the text and the template's end, and `pooled` [768]."""

    source = "diffusers Kandinsky5T2VPipeline"
    cleaning: Cleaning = "ftfy"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.qwen = qwen_part(checkpoint)
        self.qwen.check_cut(TEMPLATE, CUT)
        self.clip = ClipPart(checkpoint, "_2")
        self.parts = (self.qwen, self.clip.part)
        self.arrays = {
            "states": TextArray((settings.length, self.qwen.width), padding="mask"),
            "pooled": TextArray((self.clip.width,), padding=None),
        }
        self.facts = {
            **template_facts(settings.length, TEMPLATE, CUT, mask=False),
            "clip_length": self.clip.length,
        }

    def states(self, text: str) -> EncodedText:
        """Encode the text in its template without a mask, and the text itself with CLIP and its mask."""
        full, num_whole = self._shortened(TEMPLATE.format(text))
        tokens = self.qwen.tokens(full, length=CUT + self.settings.length, padded=False)
        states = self.qwen.run(tokens, layers=True).hidden_states[-1][0, CUT:]
        clip_tokens = self.clip.tokens(text)
        arrays = {
            "states": states,
            "pooled": self.clip.pooled(clip_tokens, mask=clip_tokens.mask),
        }
        return EncodedText(arrays, len(states), num_whole - tokens.num_own)

    def _shortened(self, full: str) -> tuple[str, int]:
        """Return the text without what the reference takes off its end, and its number of tokens.

        The reference cuts as many characters as the lost tokens have, less the template's last two.
        """
        tokenizer = self.qwen.tokenizer
        ids = tokenizer(full, verbose=False)["input_ids"]
        if len(ids) <= CUT + self.settings.length:
            return full, len(ids)
        removed = tokenizer.decode(ids[CUT:-2][self.settings.length - 2 :])
        return (full[: -len(removed)] if removed else full), len(ids)
