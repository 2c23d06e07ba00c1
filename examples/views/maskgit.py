"""Ids of images as MaskGIT takes them: int64 [B, h, w], with some of them masked by the trainer.

    python examples/views/maskgit.py CACHE_URL     (a cache of ids of images)

The mask's id is the codebook's size. Published: github.com/valeoai/Halton-MaskGIT.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch

import latentcache
from latentcache import LatentLoader


def batches(cache: latentcache.Cache, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield `code` [B, h, w], and `masked`, in which a part of each image is hidden (arccos schedule)."""
    mask_id = cache.spec.ids.codebook_size
    draw = torch.Generator().manual_seed(seed)
    for batch in LatentLoader(cache, batch_size=4, layout="BHW", names={"latents": "code"}):
        code = batch["code"]
        ratio = torch.arccos(torch.rand(len(code), 1, 1, generator=draw)) / (math.pi / 2)
        hidden = torch.rand(code.shape, generator=draw) < ratio
        yield {**batch, "masked": code.masked_fill(hidden, mask_id)}


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["code"].shape), batch["caption"])
