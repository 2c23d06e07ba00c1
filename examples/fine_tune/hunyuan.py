"""Fine-tune HunyuanVideo, text-to-video, from a cache: docs/fine-tuning.md.

Fields: text, which has LLaMA's states with their mask, and CLIP's pooled vector.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from loop import fine_tune, flow

SHIFT = 7.0  # as HunyuanVideo generates
GUIDANCE = 1.0  # what the distilled model is told: a sample of the data needs none


def build(folder: Path) -> tuple[Any, list[str], Any]:
    """Return the transformer, the fields that it takes, and the loss."""
    model = HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer")
    return model, ["text"], partial(loss, model.config.guidance_embeds)


def loss(guided: bool, model: Any, batch: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
    """Return the loss of flow matching. guided: whether the model is told a guidance."""
    noisy, times, target = flow(batch["latents"], draw, SHIFT)
    guidance = None
    if guided:
        guidance = torch.full_like(times, GUIDANCE * 1000)
    predicted = model(
        noisy,
        times * 1000,
        batch["text"].to(noisy),
        batch["text_mask"],
        batch["text.pooled"].to(noisy),
        guidance,
        return_dict=False,
    )[0]
    return torch.nn.functional.mse_loss(predicted.float(), target)


if __name__ == "__main__":
    fine_tune(build, __doc__)
