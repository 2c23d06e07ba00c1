"""Tiny encoders of texts with images, and what diffusers' own pipelines make of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from diffusers.pipelines import hunyuan_video, qwenimage
from PIL import Image
from tokenizers import AddedToken

from latentcache.encoders.text import hunyuan_video_i2v, qwen_image_edit
from tests.tools.texts import checkpoints, tokenizers
from tests.tools.texts.checkpoints import Parts
from tests.tools.texts.references import Case, Made, Padded

Images = list[Image.Image]


class Qwen2VLProcessor(hf.Qwen2VLProcessor):  # type: ignore[misc]
    """The real one without videos, whose processor needs torchvision; saved as checkpoints have it."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = (
            tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.video_token)
        )
        hf.ProcessorMixin.__init__(self, image_processor, tokenizer)

    def save_pretrained(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def qwen_edit_parts() -> Parts:
    tokenizer = tokenizers.qwen()
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *marks]})
    template, cut = qwen_image_edit.TEMPLATE, qwen_image_edit.CUT
    ids = lambda text: tokenizer(template.format(text))["input_ids"]  # noqa: E731
    tokenizers.cut_to(tokenizer, ids, template, cut, start="Describe")
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
    }  # fmt: skip
    token = {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>") for n in ("image", "video")
    }
    config = hf.Qwen2_5_VLConfig(
        text_config=checkpoints.qwen_text(tokenizer), vision_config=vision, **token
    )
    model = checkpoints.seeded(lambda: hf.Qwen2_5_VLForConditionalGeneration(config))
    processor = Qwen2VLProcessor(hf.Qwen2VLImageProcessorPil(), tokenizer)
    return {"tokenizer": tokenizer, "text_encoder": model, "processor": processor}


def hunyuan_i2v_parts() -> Parts:
    marks = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<image>", "<pad>"]
    special = ["<|begin_of_text|>", *marks]
    llama = tokenizers.byte_level(special, bos=special[0], eos="<|eot_id|>", pad="<pad>")
    words = ("system", "assistant", "\n\n")
    llama.add_tokens([AddedToken(word, normalized=False) for word in words])
    template, cut = hunyuan_video_i2v.TEMPLATE, hunyuan_video_i2v.CUT
    ids = lambda text: llama(template.format(text))["input_ids"]  # noqa: E731
    tokenizers.cut_to(llama, ids, template, cut, start="Describe")
    clip = tokenizers.clip()
    return {
        "tokenizer": llama, "text_encoder": llava_model(llama),
        "tokenizer_2": clip, "text_encoder_2": checkpoints.clip_model(clip),
        "image_processor": hf.CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
    }  # fmt: skip


def llava_model(tokenizer: Any) -> Any:
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336, "patch_size": 14,
        "initializer_range": 0.2,
    }  # fmt: skip
    text = {"model_type": "llama", "vocab_size": len(tokenizer), **checkpoints.SMALL}
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text | ids, pad_token_id=tokenizer.pad_token_id,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return checkpoints.seeded(lambda: hf.LlavaForConditionalGeneration(config))


def make_edit(pipeline: Any, text: str, images: Images) -> Made:
    """As the pipeline's call does before it encodes: the image in the size that it computes."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    (image,) = images
    width, height, _ = calculate_dimensions(1024 * 1024, image.width / image.height)
    return _made_edit(pipeline, text, pipeline.image_processor.resize(image, height, width))


def make_edit_plus(pipeline: Any, text: str, images: Images) -> Made:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    found = []
    for image in images:
        width, height = plus.calculate_dimensions(
            plus.CONDITION_IMAGE_SIZE, image.width / image.height
        )
        found.append(pipeline.image_processor.resize(image, height, width))
    return _made_edit(pipeline, text, found)


def _made_edit(pipeline: Any, text: str, image: Any) -> Made:
    states, mask = pipeline.encode_prompt(text, image=image, device="cpu")
    assert mask is None  # diffusers drops a mask that hides nothing
    kept = states[0, : qwen_image_edit.Settings.model_fields["length"].default]
    return {"states": Padded(kept, torch.ones(len(kept), dtype=torch.bool))}


def make_hunyuan(interleave: int) -> Callable[[Any, str, Images], Made]:
    def make(pipeline: Any, text: str, images: Images) -> Made:
        states, pooled, mask = pipeline.encode_prompt(
            images[0], text, device="cpu", image_embed_interleave=interleave
        )
        return {"states": Padded(states[0], mask[0].bool()), "pooled": Padded(pooled[0])}

    return make


_HUNYUAN = hunyuan_video.HunyuanVideoImageToVideoPipeline
CASES: Mapping[str, Case] = {
    "hunyuan_video_i2v_2": Case(
        "hunyuan_video_i2v", _HUNYUAN, make_hunyuan(2), {"interleave": 2}, quick=4
    ),
    "hunyuan_video_i2v_4": Case(
        "hunyuan_video_i2v", _HUNYUAN, make_hunyuan(4), {"interleave": 4}, quick=1
    ),
    "qwen_image_edit": Case(
        "qwen_image_edit", qwenimage.QwenImageEditPipeline, make_edit, quick=1
    ),
    "qwen_image_edit_plus": Case(
        "qwen_image_edit", qwenimage.QwenImageEditPlusPipeline, make_edit_plus,
        family="qwen_image_edit_plus", quick=2,
    ),
}  # fmt: skip
PARTS: Mapping[str, Callable[[], Parts]] = {
    "hunyuan_video_i2v": hunyuan_i2v_parts,
    "qwen_image_edit": qwen_edit_parts,
}
