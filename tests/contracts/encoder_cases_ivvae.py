from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latentcache.encoders.ivvae_model import IVVAE
from tests.contracts.encoder_cases import Case
from tests.encoders import golden


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


CASES = (
    Case(
        name="ivvae",
        kind="ivvae",
        raw=_raw,
        frames=(1, 5, 13),
        illegal_frames={3: "1 or 5", 8: "5 or 9", 82: "81 or 85"},
    ),
)
