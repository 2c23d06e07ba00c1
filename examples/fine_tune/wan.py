"""Fine-tune Wan 2.1, text-to-video or image-to-video, from a cache: docs/fine-tuning.md.

Fields: text; for image-to-video also i2v (mask and latents) and image (CLIP's states).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from loop import fine_tune, flow

SHIFT = 3.0  # as Wan generates at 480p; 5.0 at 720p


def build(folder: Path) -> tuple[Any, list[str], Any]:
    """Return the transformer, the fields that its own config asks for, and the loss."""
    model = WanTransformer3DModel.from_pretrained(folder / "transformer")
    fields = ["text"]
    if model.config.in_channels > model.config.out_channels:
        fields.append("i2v")  # [B, 4 + 16, t, h, w] beside the latents' 16 channels
    if model.config.image_dim is not None:
        fields.append("image")
    return model, fields, loss


def loss(model: Any, batch: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
    """Return the loss of flow matching."""
    noisy, times, target = flow(batch["latents"], draw, SHIFT)
    if "i2v" in batch:
        noisy = torch.cat([noisy, batch["i2v"].to(noisy)], dim=1)
    image = batch["image"].to(noisy) if "image" in batch else None
    predicted = model(noisy, times * 1000, batch["text"].to(noisy), image, return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted.float(), target)


if __name__ == "__main__":
    fine_tune(build, __doc__)
