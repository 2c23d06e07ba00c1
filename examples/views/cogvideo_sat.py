"""Latents as CogVideo's SAT trainer takes them with `latent_input: true`: `mp4` [B, C, t, h, w].

    python examples/views/cogvideo_sat.py CACHE_URL     (a cache of CogVideoX's moments)

They are not scaled: the model multiplies by `scale_factor` itself. They are one sample of the posterior per
epoch, seeded. With `latent_input: false` the same key holds pixels [B, T, 3, H, W]. Image-to-video cannot
take latents. Published: github.com/zai-org/CogVideo, folder sat.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

import latentcache
from latentcache import LatentLoader

NAMES = {"latents": "mp4", "caption": "txt", "frames": "num_frames"}


def batches(cache: latentcache.Cache) -> Iterator[dict[str, Any]]:
    """Yield `mp4`, `txt` (list of str), `num_frames` and `fps` [B]."""
    columns = ["key", "caption", "frames", "fps"]
    for batch in LatentLoader(cache, batch_size=4, normalise=False, columns=columns, names=NAMES):
        numbers = {name: torch.tensor(batch[name]) for name in ("num_frames", "fps")}
        yield {**batch, **numbers, "txt": [text or "" for text in batch["txt"]]}


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["mp4"].shape), batch["txt"])
