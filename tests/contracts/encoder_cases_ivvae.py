from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from latentcache.encoders.native import ivvae
from latentcache.encoders.native.ivvae_model import IVVAE
from tests.contracts.encoder_cases import Case, Model, hollow
from tests.tools import golden


def _raw(folder: Path) -> dict[str, Any]:
    with torch.device("meta"):
        model = IVVAE(dim=8, z=4)
    return {
        "kind": "ivvae",
        "checkpoint": str(golden.save(model, folder / "ivvae_z4_dim8.pth")),
        "dtype": "float32",
        "store": "moments",
        "shift": 0.25,
        "scale": 2.0,
    }


def _published(z: int, dim: int, folder: Path) -> dict[str, Any]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in IVVAE(dim=dim, z=z).state_dict().items()}
    checkpoint = hollow(folder / f"ivvae_z{z}_dim{dim}.pth", shapes)
    return {"kind": "ivvae", "checkpoint": checkpoint, "dtype": "float32", "store": "mean"}


CASES = (
    Case(
        name="ivvae",
        kind="ivvae",
        raw=_raw,
        frames=(1, 5, 13),
        illegal_frames={3: "1 or 5", 8: "5 or 9", 82: "81 or 85"},
        models=tuple(
            Model(name=f"IV-VAE z{z}_dim{dim}", raw=functools.partial(_published, z, dim))
            for z, dim in ivvae.PUBLISHED
        ),
        chunking="1, 4, 4, … frames, past carried over",
        tested="published code at 555a35a, to 1e-5, at z4_dim8; random weights",
    ),
)
