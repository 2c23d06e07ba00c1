"""Windows of ids with their actions, as TECO takes them: `video` int64 [B, T, h, w], `actions` [B, T].

    python examples/views/teco.py CACHE_URL     (corpus.keep: [actions], a list with an entry per frame)

Start tokens and pairs of frames are made inside the model. Published: github.com/wilson1yan/teco.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import latentcache
from latentcache import LatentLoader, Window


def batches(cache: latentcache.Cache, frames: int = 300) -> Iterator[dict[str, Any]]:
    """Yield a window with a random start of each clip."""
    view = Window(frames, per_frame=["actions"])
    yield from LatentLoader(cache, batch_size=4, view=view, names={"latents": "video"})


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["video"].shape), batch["actions"].shape)
