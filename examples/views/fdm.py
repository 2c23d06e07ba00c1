"""Sparse frames of long videos as FDM takes them: [B, K, C, h, w], their places, and two masks.

    python examples/views/fdm.py CACHE_URL     (a cache of an encoder of single frames)

Frames come in the order of the clip, as theirs do. Their step fills up with frames of another clip; here
these are zeros, both masks 0. Published: github.com/plai-group/flexible-video-diffusion-modeling, whose
draw is longer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import latentcache
from latentcache import LatentLoader, Pick, Record, Sparse

MOST = 20
#: Of a number of frames and a generator: the frames to observe, and those to generate.
DrawFrames = Callable[[int, torch.Generator], tuple[Sequence[int], Sequence[int]]]


class Ordered(Sparse):
    """Sparse frames in the order of the clip, whatever they are for."""

    def make(self, record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:
        """Return what a Sparse gives, sorted by place."""
        made = super().make(record, arrays, pick)
        num = len(pick.frames or ())
        order = made["frame_indices"][:num].argsort()
        for name in ("frame_indices", "obs_mask", "latent_mask"):
            made[name][:num] = made[name][order]
        made["latents"][:, :num] = made["latents"][:, order]  # [C, K, h, w]
        return made


def draw(num_frames: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Choose up to MOST frames of a random part of a clip; the first ones of them are observed."""
    num = min(num_frames, MOST)
    spread = int(torch.randint(num, num_frames + 1, (), generator=generator))
    first = int(torch.randint(num_frames - spread + 1, (), generator=generator))
    chosen = torch.randperm(spread, generator=generator)[:num] + first
    observed = int(torch.randint(num, (), generator=generator))
    return chosen[:observed].tolist(), chosen[observed:].tolist()


def batches(cache: latentcache.Cache, choose: DrawFrames = draw) -> Iterator[dict[str, Any]]:
    """Yield what FDM's training step takes, but for the noise."""
    yield from LatentLoader(cache, batch_size=4, view=Ordered(choose, MOST), layout="BTCHW")


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["latents"].shape), batch["frame_indices"].tolist())
