from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from latentcache.encoders import taehv, taesd
from tests.contracts.encoder_cases import Case
from tests.encoders import golden


def _taesd(variant: str, folder: Path, *, has_decoder: bool = True) -> dict[str, Any]:
    models = taesd.VARIANTS[variant]
    raw = {"kind": "taesd", "dtype": "float32"}
    path = golden.save(models.empty_encoder(), folder / f"{variant}_encoder.pth")
    raw["encoder"] = str(path)
    if has_decoder:
        path = golden.save(models.empty_decoder(), folder / f"{variant}_decoder.pth")
        raw["decoder"] = str(path)
    return raw


def _taehv(variant: str, folder: Path) -> dict[str, Any]:
    model = taehv.VARIANTS[variant].empty_model()
    path = golden.save(model, folder / f"{variant}.safetensors")
    return {"kind": "taehv", "checkpoint": str(path), "dtype": "float32"}


CASES = (
    Case(
        name="taesd without decoder",
        kind="taesd",
        raw=functools.partial(_taesd, "taesd", has_decoder=False),
        frames=(1, 2, 5),
        rounding=0.0,
        decodes=r"TAESD taesd has its decoder in a file of its own.*Set encoder.decoder",
    ),
    *(
        Case(
            name=variant,
            kind="taesd",
            raw=functools.partial(_taesd, variant),
            frames=(1, 2, 5),
            grids=((1, 2), (2, 1), (2, 2)),
            rounding=0.0,
        )
        for variant in ("taef2", "taesana")
    ),
    *(
        Case(
            name=variant,
            kind="taehv",
            raw=functools.partial(_taehv, variant),
            frames=(4, 8, 12),
            illegal_frames={1: "4", 6: "4 or 8", 81: "80 or 84"},
            undecoded=3,
        )
        for variant in ("taew2_1", "taew2_2_super")
    ),
    Case(
        name="taeltx2_3",
        kind="taehv",
        raw=functools.partial(_taehv, "taeltx2_3"),
        frames=(8, 16),
        illegal_frames={4: "8", 81: "80 or 88"},
        grids=((1, 2), (2, 1)),
        undecoded=7,
    ),
)
