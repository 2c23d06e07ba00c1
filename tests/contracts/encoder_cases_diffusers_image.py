from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.contracts.encoder_cases import Case
from tests.tiny_models import save


def _raw(name: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    save(name, folder)
    return {
        "kind": "diffusers_image",
        "model": str(folder),
        "dtype": "float32",
        "store": "moments",
        **options,
    }


def _case(name: str, model: str = "", **options: Any) -> Case:
    return Case(
        name=name,
        kind="diffusers_image",
        raw=functools.partial(_raw, model or name, options),
        frames=(1, 2, 3),
        rounding=0.0,
    )


CASES = (
    _case("kl"),
    _case("flux"),
    _case("flux2"),
    _case("dc", store="mean"),
    _case("tiny", store="mean"),
    _case("vq", store="ids", pixel_range=[-1, 1]),
    _case("amused", "vq", store="ids", pixel_range=[0, 1]),
    _case("movq", store="mean", pixel_range=[-1, 1]),
)
