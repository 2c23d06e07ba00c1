"""Fine-tune CogVideoX (2B, 5B, 5B-I2V) as diffusers' own trainer does, from a cache: docs/fine-tuning.md.

Fields: text; for image-to-video also frame0, the pixels, which each step noises and then encodes.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers as df
import torch
from loop import fine_tune


def build(folder: Path) -> tuple[Any, list[str], Any]:
    """Return the transformer, the fields that its config asks for, and the loss."""
    transformer = df.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    if transformer.config.patch_size_t is not None:
        raise SystemExit("CogVideoX 1.5 pads latents in time, which this script does not: use 1.0")
    scheduler = df.CogVideoXDPMScheduler.from_pretrained(folder / "scheduler")
    fields, vae = ["text"], None
    if transformer.config.in_channels > transformer.config.out_channels:
        fields.append("frame0")
        vae = df.AutoencoderKLCogVideoX.from_pretrained(folder / "vae").requires_grad_(False)

    def loss(model: Any, batch: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
        latents = batch["latents"].transpose(1, 2)  # [B, t, C, h, w]
        noise = torch.randn(latents.shape, generator=draw).to(latents)
        steps = torch.randint(1000, (len(latents),), generator=draw).to(latents.device)
        noisy = seen = scheduler.add_noise(latents, noise, steps)
        if vae is not None:
            first = encoded(vae.to(latents.device), batch["frame0"], draw)
            seen = torch.cat([noisy, torch.cat([first, torch.zeros_like(latents[:, 1:])], 1)], 2)
        part = SimpleNamespace(transformer=transformer, vae_scale_factor_spatial=1)
        positions = df.CogVideoXPipeline._prepare_rotary_positional_embeddings
        rope = positions(part, *latents.shape[-2:], latents.shape[1], latents.device)
        rope = rope if transformer.config.use_rotary_positional_embeddings else None  # not 2B
        velocity = model(seen, batch["text"].to(latents), steps, image_rotary_emb=rope).sample
        predicted = scheduler.get_velocity(velocity.float(), noisy, steps)
        weights = 1 / (1 - scheduler.alphas_cumprod.to(latents)[steps])
        return (weights.view(-1, 1, 1, 1, 1) * (predicted - latents) ** 2).mean()

    return transformer, fields, loss


def encoded(vae: Any, frame: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return latents [B, 1, C, h, w] of uint8 [B, 1, H, W, 3]; zeros for 5 % of the clips."""
    pixels = frame.movedim(-1, 1).float() / 127.5 - 1
    sigma = (torch.randn(len(frame), 1, 1, 1, 1, generator=draw) * 0.5 - 3).exp()
    pixels += (sigma * torch.randn(pixels.shape, generator=draw)).to(pixels)
    kept = torch.rand(len(frame), 1, 1, 1, 1, generator=draw).to(pixels) >= 0.05
    first = vae.encode(pixels).latent_dist.sample(draw) * vae.config.scaling_factor
    return (first * kept).transpose(1, 2).float()


if __name__ == "__main__":
    fine_tune(build, __doc__)
