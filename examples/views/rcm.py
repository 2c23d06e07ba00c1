"""Latents of a teacher as rCM takes them: normalised, at least 21 latent frames, umT5 states and prompts.

    python examples/views/rcm.py CACHE_URL TEXT_FIELD     (a cache of provenance sampler, or of roundtrip)

A sampler made what rCM trains on, so the cache comes from `latentcache import rcm`. Its step
decodes, clamps to [-1, 1] and encodes again: a cache of provenance roundtrip has that already.
Published: github.com/NVlabs/rcm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import latentcache
from latentcache import LatentLoader, Window


def batches(
    cache: latentcache.Cache, text: str, latent_frames: int = 21
) -> Iterator[dict[str, Any]]:
    """Yield `latents` [B, 16, 21, h, w], `t5_text_embeddings` [B, 512, 4096] and `prompts`."""
    yield from LatentLoader(
        cache,
        batch_size=4,
        drop_last=True,
        view=Window(latent_frames, start="first"),
        fields=[text],
        names={text: "t5_text_embeddings", "caption": "prompts"},
    )


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1]), sys.argv[2]):
        print(list(batch["latents"].shape), batch["prompts"])
