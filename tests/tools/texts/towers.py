"""Tiny image towers with random weights, and what diffusers' pipelines make of images with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from diffusers.pipelines.hunyuan_video1_5 import HunyuanVideo15ImageToVideoPipeline
from diffusers.pipelines.wan import WanImageToVideoPipeline
from PIL import Image

from tests.tools.texts.checkpoints import save, seeded

CPU = torch.device("cpu")
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip


def wan(folder: Path) -> Path:
    model = seeded(lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION)))
    size = {"shortest_edge": 56}
    processor = hf.CLIPImageProcessorPil(size=size, crop_size={"height": 56, "width": 56})
    return save(folder, {"image_encoder": model, "image_processor": processor})


def siglip(folder: Path) -> Path:
    config = hf.SiglipVisionConfig(**VISION, vision_use_head=False)
    processor = hf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    model = seeded(lambda: hf.SiglipVisionModel(config))
    return save(folder, {"image_encoder": model, "feature_extractor": processor})


def wan_reference(model: Path, images: list[Image.Image], dtype: torch.dtype) -> torch.Tensor:
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=None,
        image_encoder=hf.CLIPVisionModel.from_pretrained(model / "image_encoder", dtype=dtype),
        image_processor=hf.AutoImageProcessor.from_pretrained(model / "image_processor"),
    )  # fmt: skip
    return pipeline.encode_image(images if len(images) > 1 else images[0], CPU)


def siglip_reference(model: Path, images: list[Image.Image], dtype: torch.dtype) -> torch.Tensor:
    return HunyuanVideo15ImageToVideoPipeline._get_image_embeds(
        image_encoder=hf.SiglipVisionModel.from_pretrained(model / "image_encoder", dtype=dtype),
        feature_extractor=hf.AutoImageProcessor.from_pretrained(model / "feature_extractor"),
        image=images[0],
        device=CPU,
    )


TINY: dict[str, Callable[[Path], Path]] = {"wan_clip": wan, "siglip": siglip}
REFERENCES = {"wan_clip": wan_reference, "siglip": siglip_reference}
