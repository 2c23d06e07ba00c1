"""Weights and inputs by formula, for numbers that another program computed from the same ones."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn

DATA = Path(__file__).parents[1] / "data"


def noise(name: str, *shape: int) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) that depend only on `name` and the shape.

    The top 24 bits of the raw 64-bit outputs of PCG64, seeded with the CRC-32 of the name, divided
    by 2^23, less 1: NumPy guarantees the stream of a bit generator, and float32 holds 24 bits.
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((raw >> 40) / 2**23 - 1).astype(np.float32).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of the size that keeps activations near 1: by fan-in; norms near 1, biases near 0."""
    values = noise(name, *shape)
    if "gamma" in name or (len(shape) == 1 and name.endswith("weight")):
        values = 1 + values / 10
    elif len(shape) == 1:
        values = values / 10
    else:
        values = values * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    return torch.from_numpy(values)


def state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model, each by the formula of its name and shape."""
    return {name: weight(name, tuple(t.shape)) for name, t in model.state_dict().items()}


def save(model: nn.Module, path: Path) -> Path:
    """Write a model's tensors by the formula as torch.save does, or as safetensors by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state_dict(model), path)
    else:
        torch.save(state_dict(model), path)
    return path


def pixels(name: str, *shape: int) -> torch.Tensor:
    """uint8 values of the formula: floor((noise + 1) * 128)."""
    return torch.from_numpy(((noise(name, *shape) + 1) * 128).astype(np.uint8))


def latents(name: str, *shape: int) -> torch.Tensor:
    """Values in [-2, 2)."""
    return torch.from_numpy(noise(name, *shape) * 2)


def expected(file: str) -> Mapping[str, Any]:
    """The arrays of `tests/data/<file>.npz`."""
    with np.load(DATA / f"{file}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
