"""HunyuanVideo, image to video: LLaVA on the text and the clip's first frame, and CLIP's pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field

from latentcache.encoders.pretrained.loading import load_config, number_of
from latentcache.encoders.text.clip import ClipPart
from latentcache.encoders.text.hunyuan_video import LAYER
from latentcache.encoders.text.joint import JointFamily
from latentcache.encoders.text.part import TextPart, Tokens
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ConfigError

MARK = "<image>"
TEMPLATE = (
    f"<|start_header_id|>system<|end_header_id|>\n\n{MARK}\nDescribe the video by detailing the following "
    "aspects according to the reference image: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>\n\n"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CUT = 103
#: The token of the image, and how many take its place.
IMAGE_AT, IMAGE_TOKENS = 5, 576
#: The answer's header ends with this token, and is cut out of the states: so many tokens.
END, HEADER = "<|end_header_id|>", 4


class Settings(TextSettings):
    """`length` is counted after the template, with the answer's header."""

    family: Literal["hunyuan_video_i2v"]
    length: int = Field(
        default=256, gt=HEADER, description="Tokens of text, without the template's; at least 5."
    )
    interleave: Literal[2, 4] = Field(
        description="Every 2nd of the image's tokens is kept, as HunyuanVideo-I2V-33ch takes them "
        "(latent_concat), or every 4th, as HunyuanVideo-I2V does (token_replace)."
    )


class Encoder(JointFamily[Settings]):
    """States [n, 4096] of the image, then of the text and the template's end; and `pooled` [768]."""

    source = "diffusers HunyuanVideoImageToVideoPipeline"
    marks = (MARK,)

    def __init__(self, settings: Settings) -> None:
        checkpoint = settings.checkpoint()
        super().__init__(settings, checkpoint, "image_processor")
        self.llava = TextPart(
            checkpoint,
            "text_encoder",
            "tokenizer",
            classes=("LlavaForConditionalGeneration",),
            special=("bos",),
        )
        self.llava.check_cut(TEMPLATE, CUT)
        files = checkpoint.component("text_encoder")
        config = load_config(files, "whole")
        self._image, self._pad = (
            number_of(files, config, key) for key in ("image_token_index", "pad_token_id")
        )
        self._end = self.llava.tokenizer.convert_tokens_to_ids(END)
        self._check_image()
        self.clip = ClipPart(checkpoint, "_2")
        self.parts = (self.llava, self.clip.part)
        length = len(range(0, IMAGE_TOKENS, settings.interleave)) + settings.length - HEADER
        self.arrays = {
            "states": TextArray((length, self.llava.width), padding="mask"),
            "pooled": TextArray((self.clip.width,), padding=None),
        }
        self.facts = {
            "length": settings.length,
            "interleave": settings.interleave,
            "template": TEMPLATE,
            "cut": CUT,
            "layer": LAYER,
            "mask": True,
            "clip_length": self.clip.length,
        }

    def states(self, text: str, images: Sequence[Image.Image]) -> EncodedText:
        """Encode the text in its template with the image, and the text itself with CLIP."""
        whole = self.llava.tokens(TEMPLATE.format(text), length=self.settings.length + CUT)
        inputs = self.processor(images)
        output = self.llava.run(**self._with_image(whole), layers=True, **inputs)
        states = output.hidden_states[LAYER][0]
        image = states[IMAGE_AT : IMAGE_AT + IMAGE_TOKENS][:: self.settings.interleave]
        own = torch.cat([image, self._own_rows(states, whole)])
        arrays = {"states": own, "pooled": self.clip.pooled(self.clip.tokens(text))}
        return EncodedText(arrays, len(own), whole.lost)

    def _with_image(self, whole: Tokens) -> dict[str, Any]:
        """Return what the model gets: room for the image, and positions that leave padding out."""
        before, after = whole.ids[:, :IMAGE_AT], whole.ids[:, IMAGE_AT + 1 :]
        image = torch.full((1, IMAGE_TOKENS), self._image)
        ids = torch.cat([before, image, after], dim=1)
        mask = (ids != self._pad).long()
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        tokens = Tokens(ids=ids, mask=mask, lost=whole.lost)
        return {"tokens": tokens, "mask": mask, "position_ids": positions}

    def _own_rows(self, states: torch.Tensor, whole: Tokens) -> torch.Tensor:
        """Return the rows after the template's beginning, without padding and the answer's header.

        Where a text is too long, there is no such header: its last tokens go in its place.
        """
        ids, num = whole.ids[0], whole.ids.shape[1]
        ends = (ids == self._end).nonzero()[:, 0].tolist()
        end = 1 + (num - 1 if len(ends) == 2 else ends[-1])  # 2: those of the template's beginning
        rows = torch.cat([torch.arange(CUT, end - HEADER), torch.arange(end, num)])
        rows = rows[whole.mask[0, rows].bool()]
        return states[(rows + IMAGE_TOKENS - 1).to(states.device)]

    def _check_image(self) -> None:
        """Raise ConfigError unless the template's image is one token, where the reference has it."""
        ids = self.llava.tokens(TEMPLATE, length=CUT, padded=False).ids[0].tolist()
        if ids.count(self._image) != 1 or ids[IMAGE_AT] != self._image:
            raise ConfigError(
                f"text_encoder: the tokenizer does not make {MARK} the model's token {self._image} at "
                f"place {IMAGE_AT} of the template. It is another model's tokenizer. Name the folder of "
                "the model's own."
            )
