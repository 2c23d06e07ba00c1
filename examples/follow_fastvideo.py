"""FastVideo's records straight from a cache: `python examples/follow_fastvideo.py CACHE_URL umt5`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils.data import Dataset

import latentcache


class FastVideoClips(Dataset):
    """Raw means [C, t, h, w] in float32, the text's own states [n, D] in float32, and what clips are.

    text: a field of the column `caption`, since a record has the states beside the caption.
    """

    def __init__(self, url: str, text: str) -> None:
        self.clips = latentcache.open_cache(url).dataset(
            posterior="mode", normalise=False, dtype=torch.float32, fields=[text]
        )
        self.text = text

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> dict[str, Any]:
        clip = self.clips[number]
        states = clip[self.text][: clip[f"{self.text}_tokens"]].float()
        facts = {"id": clip["key"], "file_name": clip["source"], "caption": clip["caption"] or ""}
        return {"vae_latent": clip["latents"], "text_embedding": states, **facts}


if __name__ == "__main__":
    record = FastVideoClips(*sys.argv[1:])[0]
    print({name: getattr(value, "shape", value) for name, value in record.items()})
