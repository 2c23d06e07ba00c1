"""Train Wan's transformer on a cache with text states: see docs/first-hour.md.

MODEL is a folder as diffusers saves pipelines. The trained transformer goes to MODEL/trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from latentcache import LatentLoader


def flow_loss(model: Any, batch: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
    """Return the loss of flow matching: the model sees noisy latents and predicts noise - latents."""
    latents = batch["latents"]
    noise = torch.randn(latents.shape, generator=draw).to(latents)
    times = torch.randn(len(latents), generator=draw).sigmoid().to(latents)  # 0 clean, 1 noise
    times = 3 * times / (1 + 2 * times)  # Wan's shift for 480p
    noisy = torch.lerp(latents, noise, times.view(-1, 1, 1, 1, 1))
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
        predicted = model(noisy, times * 1000, batch["text"].to(latents), return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted.float(), noise - latents)


def main() -> None:
    """Train for some steps, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache")
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3, help="for published weights: 1e-5")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = WanTransformer3DModel.from_pretrained(args.model / "transformer").to(device).train()
    model.enable_gradient_checkpointing()
    loader = LatentLoader(args.cache, args.batch_size, device=device, dtype=torch.float32,
                          fields=["text"], caption_dropout=0.1)  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr)
    draw, step = torch.Generator().manual_seed(0), 0
    while step < args.steps:
        for batch in loader:  # an epoch; the next one has another order and new samples
            loss = flow_loss(model, batch, draw)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if (step := step + 1) % 10 == 0:
                print(f"step {step}, epoch {loader.epoch}: loss {loss:.3f}")
            if step == args.steps:
                break
    model.save_pretrained(args.model / "trained")


if __name__ == "__main__":
    main()
