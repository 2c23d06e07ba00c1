"""The examples of trajectories: DDIM inversion writes one, null-text optimisation reads it in reverse."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache.reading.fields import FieldReader
from tests.tools.caches import ROOT
from tests.tools.synthetic import write_cache

STEPS, LENGTH, WIDTH = 4, 3, 8
pytestmark = pytest.mark.slow


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def save_pipeline(folder: Path) -> str:
    """Save a tiny UNet with random weights, and its scheduler, as a pipeline's folder has them."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    unet.save_pretrained(folder / "unet")
    # What a Stable Diffusion pipeline's own configuration says.
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")
    return str(folder)


def test_a_trajectory_is_written_and_read_in_reverse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_cache(str(tmp_path / "cache"), by_frame=True, buckets={"3x32x32": 2}).url
    pipeline = save_pipeline(tmp_path / "pipeline")
    opened = latentcache.open_cache(url)
    null, text = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    inversion = script("ddim_inversion")
    assert inversion["write"](opened, pipeline, null, steps=STEPS).num_ok == 2
    key = opened.keys()[0]
    trajectory = opened[key]["ddim"]
    assert trajectory.shape == (STEPS + 1, 4, 3, 4, 4)
    assert torch.equal(trajectory[0], opened[key]["latents"].float())
    assert opened[key]["ddim.timesteps"].diff().gt(0).all()

    read = list[Sequence[int]]()
    original = FieldReader.read_steps

    def watched(self: FieldReader, *args: Any) -> None:
        read.append(list(args[4]))
        original(self, *args)

    monkeypatch.setattr(FieldReader, "read_steps", watched)
    null_text = script("null_text")
    assert null_text["write"](opened, pipeline, null, text, rounds=3).num_ok == 2
    assert read == [[n] for _ in range(2) for n in reversed(range(STEPS + 1))]
    states = opened.steps("null_text", key)
    assert states.shape == (STEPS, LENGTH, WIDTH)
    assert nearness(null_text, pipeline, trajectory, states, text) < nearness(
        null_text, pipeline, trajectory, [null] * STEPS, text
    )


@torch.no_grad()
def nearness(
    null_text: dict[str, Any], pipeline: str, trajectory: torch.Tensor, states: Any, text: Any
) -> float:
    """Return how far guided steps with these states are from the trajectory's, step by step, in all."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    frames = trajectory.transpose(1, 2)
    total = 0.0
    for i, timestep in enumerate(scheduler.timesteps):
        reached = null_text["guided"](
            frames[STEPS - i], timestep, unet, scheduler, states[i], text, 7.5
        )
        total += float((reached - frames[STEPS - i - 1]).square().mean())
    return total
