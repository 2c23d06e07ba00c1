"""Null-text optimisation: reads the field `ddim` in reverse, writes the field `null_text`, noisy to clean.

    python examples/null_text.py CACHE_URL PIPELINE TEXT_FIELD     (after ddim_inversion.py)

Step i has the unconditional states [L, D] with which a guided DDIM step leads from z_{S-i} to z_{S-i-1}.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

import latentcache
from latentcache import FieldArray


def guided(
    z: torch.Tensor, t: Any, unet: Any, scheduler: Any, null: Any, text: Any, scale: float
) -> torch.Tensor:
    """Return frames [t, C, h, w] one DDIM step nearer to clean."""
    free, bound = (
        unet(z, t, encoder_hidden_states=states.expand(len(z), -1, -1)).sample
        for states in (null, text)
    )
    return scheduler.step(free + scale * (bound - free), t, z).prev_sample


def optimise(
    steps: Any, unet: Any, scheduler: Any, null: Any, text: Any, *, scale: float, rounds: int
) -> Iterator[torch.Tensor]:
    """Yield the states of each step. steps: the trajectory; each is read once, from the last one on."""
    backwards = (z.float().transpose(0, 1) for z in reversed(steps))
    reference = next(backwards)
    for t, target in zip(scheduler.timesteps, backwards, strict=True):
        null = null.clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=1e-2)
        for _ in range(rounds):
            adam.zero_grad()
            reached = guided(reference, t, unet, scheduler, null, text, scale)
            torch.nn.functional.mse_loss(reached, target).backward()
            adam.step()
        null = null.detach()
        yield null
        reference = target


def write(cache: latentcache.Cache, pipeline: str, null: Any, text: Any, rounds: int = 10) -> Any:
    """Write the field; returns what was written. null, text: states [L, D]."""
    unet = (
        UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
        .eval()
        .requires_grad_(False)
    )
    scheduler = DDIMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    steps = cache.field("ddim").arrays["ddim"].shape[0] - 1
    scheduler.set_timesteps(steps)

    def make(key: str) -> dict[str, torch.Tensor]:
        read = cache.steps("ddim", key)
        states = optimise(read, unet, scheduler, null, text, scale=7.5, rounds=rounds)
        return {"null_text": torch.stack(list(states))}

    array = FieldArray(shape=(steps, *null.shape), dtype="float32", rule="by_step")
    return latentcache.write_field(
        cache, "null_text", make, arrays=array, recipe={"steps": steps, "rounds": rounds}
    )


if __name__ == "__main__":
    opened = latentcache.open_cache(sys.argv[1])
    empty = torch.as_tensor(opened.field(sys.argv[3]).nulls["null"].arrays[0].astype("float32"))
    print(write(opened, sys.argv[2], empty, empty))
