"""Ids of clips as VideoGPT takes them: int64 [B, t, h, w], and their codebook vectors [B, t, h, w, D].

    python examples/views/videogpt.py CACHE_URL     (a cache of kind videogpt, with corpus.keep: [label])

With a field `pixels: {kind: raw, of: clip}` the first frames come, too, as its ResNet takes them. One-hot
vectors of labels belong to the trainer. Published: github.com/wilson1yan/VideoGPT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

import latentcache
from latentcache import LatentLoader


def batches(cache: latentcache.Cache, cond_frames: int = 0) -> Iterator[dict[str, Any]]:
    """Yield `targets` and `x`; `frame_cond` [B, 3, cond_frames, H, W] in [-0.5, 0.5]; `label` [B]."""
    quantiser = cache.quantiser()
    fields = ["pixels"] if cond_frames else []
    for batch in LatentLoader(cache, batch_size=4, fields=fields, names={"latents": "targets"}):
        if cond_frames:
            first = batch.pop("pixels")[:, :cond_frames]  # uint8 [B, n, H, W, 3]
            batch["frame_cond"] = first.permute(0, 4, 1, 2, 3).float() / 255.0 - 0.5
        if "label" in batch:
            batch["label"] = torch.tensor(batch["label"])
        yield {**batch, "x": quantiser.vectors(batch["targets"])}


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["x"].shape), batch["key"])
