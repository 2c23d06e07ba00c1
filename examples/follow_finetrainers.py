"""finetrainers' records straight from a cache: `python examples/follow_finetrainers.py CACHE_URL umt5`.

Each rank takes its own part: `torch.utils.data.Subset`, or a DistributedSampler, which also shuffles.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import Dataset

import latentcache


class FinetrainersClips(Dataset):
    """Raw moments [1, 2C, t, h, w], mean and 1 / std per channel, and states [1, 512, D] with zeros."""

    def __init__(self, url: str, text: str, length: int = 512) -> None:
        expect = {"model_class": "AutoencoderKLWan", "stored": "moments"}
        self.cache = latentcache.open_cache(url, expect=expect)
        self.keys = self.cache.dataset(fields=[text]).keys()
        self.text, self.length = text, length

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        (clip,) = self.cache.stored_samples([self.cache.number(self.keys[number])])
        states = torch.zeros(1, self.length, clip[self.text].shape[1], dtype=clip[self.text].dtype)
        tokens = clip[f"{self.text}_tokens"]
        states[0, :tokens] = clip[self.text][:tokens]
        normaliser = self.cache.spec.normaliser
        return {
            "latents": clip["latents"][None],
            "latents_mean": torch.tensor(normaliser.shift),
            "latents_std": torch.tensor(normaliser.scale),  # 1 / std, whatever its name says
            "encoder_hidden_states": states,
        }


if __name__ == "__main__":
    print({name: tuple(t.shape) for name, t in FinetrainersClips(*sys.argv[1:])[0].items()})
