"""What the scripts of this folder share: arguments, the loader, optimisation, saving and going on.

Under torchrun each process is a rank: `torchrun --nproc-per-node 8 wan.py ...`.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from latentcache import LatentLoader

#: (transformer, batch, random numbers) -> loss, a scalar.
Loss = Callable[[Any, dict[str, Any], torch.Generator], torch.Tensor]
#: Folder of the pipeline -> transformer, names of the fields that it takes, loss.
Build = Callable[[Path], tuple[Any, Sequence[str], Loss]]


def fine_tune(build: Build, doc: str | None) -> None:
    """Train for --steps steps. With OUT/state.pt, which a stopped run leaves, go on from there."""
    args = arguments(doc)
    rank, world_size, device = ranks()
    model, fields, loss_of = build(args.model)
    model.to(device).train().enable_gradient_checkpointing()
    loader = LatentLoader(
        args.cache,
        args.batch_size,
        rank=rank,
        world_size=world_size,
        device=device,
        dtype=torch.float32,
        columns=["fps"],
        fields=fields,
        caption_dropout=0.1,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr)
    parts, first, path = (model, optimiser, loader), 0, args.out / "state.pt"
    if path.exists():  # in a folder that all ranks see
        first, *states = torch.load(path, map_location="cpu")
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    trained = DistributedDataParallel(model) if world_size > 1 else model
    args.out.mkdir(parents=True, exist_ok=True)
    batches = (batch for _ in itertools.count() for batch in loader)  # epoch after epoch
    for step in range(first, args.steps):
        # So a run that goes on draws the same, and each rank something else.
        draw = torch.Generator().manual_seed(step * world_size + rank)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(trained, next(batches), draw)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if rank > 0:
            continue  # all ranks have the same weights and the same place in the epoch
        print(f"step {step + 1}: loss {loss:.4f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            whole = path.with_suffix(".tmp")  # a kill in the middle leaves the former state
            torch.save([step + 1, *(part.state_dict() for part in parts)], whole)
            whole.replace(path)
    if rank == 0:
        model.save_pretrained(args.out)
    if world_size > 1:
        dist.destroy_process_group()


def ranks() -> tuple[int, int, torch.device]:
    """Return rank, number of ranks and device: of the processes that torchrun has started, or of one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" not in os.environ:
        return 0, 1, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group()
    return dist.get_rank(), dist.get_world_size(), device


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
