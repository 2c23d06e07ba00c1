"""Qwen-Image-Edit and Edit-Plus (2509, 2511): Qwen2.5-VL in a template, images before the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.core.units import plural
from latentcache.encoders.text.joint import JointFamily
from latentcache.encoders.text.part import check_room, qwen_part, template_facts
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, "
    "objects, background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with the "
    "original input where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CUT = 64
PAD = "<|image_pad|>"
IMAGE = f"<|vision_start|>{PAD}<|vision_end|>"
#: What images are resized to, in pixels; sides are multiples of `MULTIPLE`.
AREA, PLUS_AREA = 1024 * 1024, 384 * 384
MULTIPLE = 32
#: The reference cuts no text; no tokenizer gets so far.
NO_LENGTH = 1 << 30


class Settings(TextSettings):
    """`length` is counted after the template, and holds the images' tokens: about 1,350 of Edit's one."""

    family: Literal["qwen_image_edit", "qwen_image_edit_plus"]
    length: Positive = Field(
        default=2560,
        description="Tokens of images and text, without the template's first ones. The reference cuts "
        "nothing; what is longer is cut off after encoding, and counted.",
    )


class Encoder(JointFamily[Settings]):
    """States [n, 3584] of the images, the text and the template's end."""

    source = "diffusers QwenImageEditPipeline"
    marks = (PAD, "<|video_pad|>")
    area = AREA

    def __init__(self, settings: Settings) -> None:
        checkpoint = settings.checkpoint()
        super().__init__(settings, checkpoint, "processor")
        self.qwen = qwen_part(checkpoint, tokenizer="processor")
        self.qwen.check_cut(TEMPLATE, CUT)
        self.parts = (self.qwen,)
        self.arrays = {"states": TextArray((settings.length, self.qwen.width), padding="mask")}
        self.facts = {
            **template_facts(settings.length, TEMPLATE, CUT, mask=True),
            "image": self.before(1),
            "area": self.area,
        }

    def before(self, num_images: int) -> str:  # noqa: ARG002 - PlusEncoder's depends on it
        """Return what stands before the text."""
        return IMAGE

    def check_room(self, num_images: int) -> None:
        """Raise ConfigError if so many square images take all of the length."""
        square = Image.new("RGB", (MULTIPLE, MULTIPLE))
        start = TEMPLATE.split("{}")[0] + self.before(num_images)
        before, _ = self._with_images(start, [square] * num_images)
        num = len(self.qwen.tokenizer(before, verbose=False)["input_ids"]) - CUT
        check_room(self.settings.length, num, f"of {plural(num_images, 'image')}")

    def states(self, text: str, images: Sequence[Image.Image]) -> EncodedText:
        """Encode images and text in the template; rows of the template's beginning are dropped."""
        full, inputs = self._with_images(TEMPLATE.format(self.before(len(images)) + text), images)
        tokens = self.qwen.tokens(full, length=NO_LENGTH, padded=False)
        output = self.qwen.run(tokens, mask=tokens.mask, layers=True, **inputs)
        states = output.hidden_states[-1][0, CUT:]
        kept = states[: self.settings.length]
        return EncodedText({"states": kept}, len(kept), len(states) - len(kept))

    def _with_images(self, full: str, images: Sequence[Image.Image]) -> tuple[str, Any]:
        """Return a text with a mark for each token of its images, and what the model gets of these."""
        inputs = self.processor([resized(image, self.area) for image in images])
        per_token = self.processor.processor.merge_size**2
        first, *rest = full.split(PAD)
        for grid, after in zip(inputs["image_grid_thw"], rest, strict=True):
            first += PAD * (int(grid.prod()) // per_token) + after
        return first, inputs


class PlusEncoder(Encoder):
    """The same of several images, smaller and numbered."""

    source = "diffusers QwenImageEditPlusPipeline"
    max_images = None
    area = PLUS_AREA

    def before(self, num_images: int) -> str:
        """Return the images' numbers and places."""
        return "".join(f"Picture {n}: {IMAGE}" for n in range(1, num_images + 1))


def resized(image: Image.Image, area: int) -> Image.Image:
    """Return an image of about `area` pixels and about its own aspect ratio, as diffusers resizes it."""
    ratio = image.width / image.height
    width = math.sqrt(area * ratio)
    height = width / ratio
    size = (round(width / MULTIPLE) * MULTIPLE, round(height / MULTIPLE) * MULTIPLE)
    return image.resize(size, resample=Image.Resampling.LANCZOS)
