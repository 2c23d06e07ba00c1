"""DDIM inversion of every clip, frame by frame, as a field `ddim`: z_0 .. z_S, clean to noisy.

    python examples/ddim_inversion.py CACHE_URL PIPELINE TEXT_FIELD

The cache has latents of Stable Diffusion's autoencoder, and a text field of the pipeline's text encoder.
Run it again to go on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, UNet2DConditionModel

import latentcache
from latentcache import FieldArray


@torch.no_grad()
def invert(
    z: torch.Tensor, unet: Any, scheduler: Any, text: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yield frames [t, C, h, w] from clean to noisy. text: states [L, D] of the prompt."""
    yield z
    states = text.expand(len(z), -1, -1)
    for timestep in scheduler.timesteps:
        noise = unet(z, timestep, encoder_hidden_states=states).sample
        z = scheduler.step(noise, timestep, z).prev_sample
        yield z


def write(cache: latentcache.Cache, pipeline: str, text: torch.Tensor, steps: int = 50) -> Any:
    """Write the field, with the timestep of each inverse step; returns what was written."""
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").eval()
    scheduler = DDIMInverseScheduler.from_pretrained(pipeline, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    clips = cache.dataset(posterior="mode")

    def make(key: str) -> dict[str, torch.Tensor]:
        z = clips[key]["latents"].float().transpose(0, 1)
        trajectory = torch.stack(list(invert(z, unet, scheduler, text)))
        return {"ddim": trajectory.transpose(1, 2), "timesteps": scheduler.timesteps}

    arrays = {
        "ddim": FieldArray(
            shape=(steps + 1, cache.spec.channels), dtype="float32", rule="trajectory"
        ),
        "timesteps": FieldArray(shape=(steps,), dtype="float32"),
    }
    recipe = {"sampler": "DDIM inversion", "steps": steps, "unet": dict(unet.config)["_class_name"]}
    return latentcache.write_field(cache, "ddim", make, arrays=arrays, recipe=recipe)


if __name__ == "__main__":
    opened = latentcache.open_cache(sys.argv[1])
    null = opened.field(sys.argv[3]).nulls["null"].arrays[0]
    print(write(opened, sys.argv[2], torch.as_tensor(null.astype("float32"))))
