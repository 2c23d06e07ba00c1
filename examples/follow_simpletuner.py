"""SimpleTuner's latents straight from a cache: `python examples/follow_simpletuner.py CACHE_URL`."""

from __future__ import annotations

import sys

import torch
from torch.utils.data import Dataset

import latentcache


class SimpleTunerClips(Dataset):
    """Means [C, t, h, w], normalised in the VAE's data type with numbers that were rounded to it."""

    def __init__(self, url: str, dtype: torch.dtype = torch.bfloat16) -> None:
        cache = latentcache.open_cache(url, expect={"model_class": "AutoencoderKLWan"})
        self.clips = cache.dataset(posterior="mode", normalise=False, dtype=dtype)
        shift, scale = torch.tensor(
            [cache.spec.normaliser.shift, cache.spec.normaliser.scale]
        ).double()
        self.mean = shift.to(dtype).view(-1, 1, 1, 1)
        self.inverse = 1.0 / (1 / scale).to(dtype).view(-1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> torch.Tensor:
        return (self.clips[number]["latents"] - self.mean) * self.inverse


if __name__ == "__main__":
    print(SimpleTunerClips(sys.argv[1])[0].shape)
