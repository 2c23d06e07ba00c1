"""Fine-tune LTX-Video, for text-to-video and image-to-video at once, from a cache: docs/fine-tuning.md.

Fields: text. The image is the clip's own first latent, which half of the clips get without noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from loop import fine_tune, flow

SHIFT = 3.0
IMAGE_RATE = 0.5  # the part of clips whose first latent is given


def build(folder: Path) -> tuple[Any, list[str], Any]:
    """Return the transformer, the fields that it takes, and the loss."""
    return LTXVideoTransformer3DModel.from_pretrained(folder / "transformer"), ["text"], loss


def loss(model: Any, batch: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
    """Return the loss of flow matching over the latents that are not given."""
    latents = batch["latents"]
    noisy, times, target = flow(latents, draw, SHIFT)
    _, _, frames, height, width = latents.shape
    given = torch.zeros(len(latents), 1, frames, height, width, device=latents.device)
    given[torch.rand(len(latents), generator=draw) < IMAGE_RATE, :, 0] = 1
    noisy, given, target = map(
        LTXPipeline._pack_latents, (torch.lerp(noisy, latents, given), given, target)
    )  # [B, t * h * w, C]
    seconds = 8 / torch.tensor(batch["fps"]).to(latents).view(-1, 1, 1, 1, 1)  # of a latent frame
    predicted = model(
        noisy,
        batch["text"].to(noisy),
        (1 - given[..., 0]) * times.view(-1, 1) * 1000,
        batch["text_mask"],
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(seconds, 32, 32),
        return_dict=False,
    )[0]
    wanted = (1 - given).expand_as(target)
    return (wanted * (predicted.float() - target) ** 2).sum() / wanted.sum()


if __name__ == "__main__":
    fine_tune(build, __doc__)
