"""musubi-tuner's records straight from a cache: `python examples/follow_musubi.py CACHE_URL umt5`.

A batch of its trainer has `latents` stacked and `t5` as a list.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import Dataset

import latentcache


class MusubiClips(Dataset):
    """Normalised means [C, t, h, w] in bfloat16, and the text's own states [n, D]."""

    def __init__(self, url: str, text: str) -> None:
        cache = latentcache.open_cache(url, expect={"model_class": "AutoencoderKLWan"})
        self.clips = cache.dataset(posterior="mode", dtype=torch.bfloat16, fields=[text])
        self.text = text

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        clip = self.clips[number]
        states = clip[self.text][: clip[f"{self.text}_tokens"]]
        return {"latents": clip["latents"], "t5": states}


if __name__ == "__main__":
    print({name: tuple(tensor.shape) for name, tensor in MusubiClips(*sys.argv[1:])[0].items()})
