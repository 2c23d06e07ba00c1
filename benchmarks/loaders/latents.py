"""The latents that all formats hold: a real one repeated with small noise, or a synthetic one.

They are in one flat file, from which the formats are written and with which they are compared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numcodecs.blosc
import numpy as np
import torch

#: Shape [C, T, H, W] of a CogVideoX latent of 49 frames of 480x720: 2.25 MB as bfloat16.
SHAPE = (16, 13, 60, 90)
SAMPLE_BYTES = 2 * int(np.prod(SHAPE))
REAL = "cogvideox_16x13x60x90.pt"
#: Deviation of the noise as a fraction of the latent's own. It changes four of five values by about one
#: step of bfloat16, and the ratio of byte shuffle and zstd-5 by less than 0.001.
NOISE = 0.01
LEVEL = 5


@dataclass(frozen=True, kw_only=True)
class Latents:
    """num samples of SHAPE, bfloat16, one after another in the flat file `path`."""

    path: Path
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._all[index].clone()

    @functools.cached_property
    def _all(self) -> torch.Tensor:
        words = np.memmap(self.path, np.int16, "c", shape=(self.num, *SHAPE))
        return torch.from_numpy(words).view(torch.bfloat16)


def base_latent(folder: Path | None) -> tuple[torch.Tensor, str]:
    """The sample [C, T, H, W], float32, that is repeated, and where it comes from."""
    if folder is None or not (folder / REAL).exists():
        return _synthetic(), "synthetic: smooth in space, half normal noise"
    stored = torch.load(folder / REAL, map_location="cpu", weights_only=True)
    return stored.float().reshape(SHAPE), f"real, {REAL}"


def _synthetic() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, SHAPE[0] * SHAPE[1], 8, 12), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SHAPE[2:], mode="bilinear").reshape(SHAPE)
    return smooth + 0.5 * torch.randn(SHAPE, generator=generator)


def write(base: torch.Tensor, num: int, path: Path) -> Latents:
    """Write `num` noisy copies of `base`; sample i depends only on the base and i."""
    scale = NOISE * float(base.std())
    with path.open("wb") as file:
        for index in range(num):
            noise = np.random.default_rng(index).standard_normal(SHAPE, np.float32)
            sample = (base + scale * torch.from_numpy(noise)).to(torch.bfloat16)
            file.write(sample.view(torch.int16).numpy().tobytes())
    return Latents(path=path, num=num)


def ratio(sample: torch.Tensor) -> float:
    """Compressed bytes (byte shuffle, zstd-5) of a sample as bfloat16, over raw bytes."""
    words = sample.to(torch.bfloat16).contiguous().view(torch.int16).numpy().reshape(-1)
    return len(numcodecs.blosc.compress(words, b"zstd", LEVEL)) / words.nbytes
