"""What the scripts of this folder share: arguments, the loader, optimisation, saving and going on."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from latentcache import LatentLoader

#: (transformer, batch, random numbers) -> loss, a scalar.
Loss = Callable[[Any, dict[str, Any], torch.Generator], torch.Tensor]
#: Folder of the pipeline -> transformer, names of the fields that it takes, loss.
Build = Callable[[Path], tuple[Any, Sequence[str], Loss]]


def fine_tune(build: Build, doc: str | None) -> None:
    """Train for --steps steps. With OUT/state.pt, which a stopped run leaves, go on from there."""
    args = arguments(doc)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, fields, loss_of = build(args.model)
    model.to(device).train().enable_gradient_checkpointing()
    loader = LatentLoader(
        args.cache,
        args.batch_size,
        device=device,
        dtype=torch.float32,
        columns=["fps"],
        fields=fields,
        caption_dropout=0.1,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr)
    parts, first, path = (model, optimiser, loader), 0, args.out / "state.pt"
    if path.exists():
        first, *states = torch.load(path, map_location="cpu")
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    args.out.mkdir(parents=True, exist_ok=True)
    batches = (batch for _ in itertools.count() for batch in loader)  # epoch after epoch
    for step in range(first, args.steps):
        draw = torch.Generator().manual_seed(step)  # so a run that goes on draws the same
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(model, next(batches), draw)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        print(f"step {step + 1}: loss {loss:.4f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            whole = path.with_suffix(".tmp")  # a kill in the middle leaves the former state
            torch.save([step + 1, *(part.state_dict() for part in parts)], whole)
            whole.replace(path)
    model.save_pretrained(args.out)


def arguments(doc: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cache", help="the cache's URL")
    parser.add_argument("model", type=Path, help="a folder as diffusers saves pipelines")
    parser.add_argument("out", type=Path, help="where the trained transformer goes")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--save-every", type=int, default=500, metavar="STEPS")
    return parser.parse_args()


def flow(latents: torch.Tensor, draw: torch.Generator, shift: float) -> tuple[torch.Tensor, ...]:
    """Return noisy latents, times [B] in (0, 1), and noise - latents, which the model predicts.

    Times are logit-normal, then shifted towards 1, which is noise.
    """
    noise = torch.randn(latents.shape, generator=draw).to(latents)
    times = torch.randn(len(latents), generator=draw).sigmoid().to(latents)
    times = shift * times / (1 + (shift - 1) * times)
    return torch.lerp(latents, noise, times.view(-1, 1, 1, 1, 1)), times, noise - latents
