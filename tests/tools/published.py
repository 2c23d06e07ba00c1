"""Numbers that the published code of a tokenizer gave, and the weights that it gave them with.

Each `tests/data/<name>.npz` was made once by running the authors' own code, unchanged, on a CPU in
float32 and eval mode: its model was built small, its state dict filled by `weights` below, and its
own encode and decode were called on `pixels` below, after its own conversion to the model's range.
The files hold

names, shapes: of the published state dict, so that a test builds a checkpoint as the trainer writes it
ids: what its encode gave; latents: what was quantised; decoded: its decode of the first clip
settings: hyper-parameters, as JSON

    videogpt       github.com/wilson1yan/VideoGPT       videogpt.vqvae.VQVAE, of two strides
    vqgan          github.com/CompVis/taming-transformers  taming.models.vqgan.VQModel (its parts)
    gumbel         the same                             taming.models.vqgan.GumbelVQ (its parts), no noise
    var            github.com/FoundationVision/VAR      models.vqvae.VQVAE
    llamagen       github.com/FoundationVision/LlamaGen at ce98ec4  tokenizer_image.vq_model.VQModel
    open_magvit2   github.com/TencentARC/SEED-Voken     src.Open_MAGVIT2: its video Encoder, Decoder and LFQ
    open_magvit2_image  the same at b9a17ea             those of images
    open_magvit2_1xgpt  github.com/1x-technologies/1xgpt at 0069734  magvit2: its Encoder, Decoder and LFQ
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"


def weights(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return tensors that are a function of their names and shapes: the same in every version of numpy."""
    return {name: _tensor(name, tuple(shape)) for name, shape in zip(names, shapes, strict=True)}


def _tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith(("num_batches_tracked", "num_updates")):
        return torch.tensor(0)
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = np.exp(0.1 * noise)
    elif "embed" in name or "codebook" in name:
        values = noise
    elif len(shape) > 1:
        values = 1.5 * noise / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.1 * noise
    else:
        values = 0.1 * noise
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def pixels(batch: int, frames: int, height: int, width: int) -> torch.Tensor:
    """Return uint8 [B, T, H, W, 3]: moving waves and noise, the same in every version of numpy."""
    b, t, y, x, c = np.meshgrid(
        *(np.arange(n) for n in (batch, frames, height, width, 3)), indexing="ij"
    )
    waves = np.sin((x + 2 * y * (c - 1) + 3 * t) / 5 + b + c) * 80
    noise = np.random.RandomState(0).standard_normal(waves.shape) * 30
    return torch.from_numpy(np.clip(np.rint(128 + waves + noise), 0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file: the published state dict and what the published code gave. Arrays as torch tensors."""

    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any]
    pixels: torch.Tensor
    ids: torch.Tensor
    latents: torch.Tensor
    decoded: torch.Tensor

    @classmethod
    @functools.cache  # its random numbers take longer than most tests
    def load(cls, name: str) -> Published:
        with np.load(DATA / f"{name}.npz") as file:
            settings = json.loads(str(file["settings"]))
            return cls(
                tensors=weights(file["names"].tolist(), json.loads(str(file["shapes"]))),
                settings=settings,
                pixels=pixels(*settings["pixels"]),
                **{key: torch.from_numpy(file[key]) for key in ("ids", "latents", "decoded")},
            )
