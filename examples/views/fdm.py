"""Sparse frames of long videos as FDM takes them: [B, K, C, h, w], their places, and two masks.

    python examples/views/fdm.py CACHE_URL     (a cache of an encoder of single frames)

Published: github.com/plai-group/flexible-video-diffusion-modeling, whose draw of frames is longer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

import latentcache
from latentcache import LatentLoader, Sparse

MOST = 20


def draw(num_frames: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Choose up to MOST frames of a random part of a clip; the first ones of them are observed."""
    num = min(num_frames, MOST)
    spread = int(torch.randint(num, num_frames + 1, (), generator=generator))
    first = int(torch.randint(num_frames - spread + 1, (), generator=generator))
    chosen = torch.randperm(spread, generator=generator)[:num] + first
    observed = int(torch.randint(num, (), generator=generator))
    return chosen[:observed].tolist(), chosen[observed:].tolist()


def batches(cache: latentcache.Cache) -> Iterator[dict[str, Any]]:
    """Yield what FDM's training step takes, but for the noise."""
    yield from LatentLoader(cache, batch_size=4, view=Sparse(draw, MOST), layout="BTCHW")


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["latents"].shape), batch["frame_indices"].tolist())
