from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from latentcache.encoders.native import taehv, taesd
from tests.contracts.encoder_cases import Case, Model, hollow
from tests.tools import golden


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


def _published(kind: str, name: str, folder: Path) -> dict[str, Any]:
    if kind == "taesd":
        model, key, suffix = taesd.VARIANTS[name].empty_encoder(), "encoder", "_encoder"
    else:
        model, key, suffix = taehv.VARIANTS[name].empty_model(), "checkpoint", ""
    shapes = {tensor: value.shape for tensor, value in model.state_dict().items()}
    return {"kind": kind, key: hollow(folder / f"{name}{suffix}.pth", shapes), "dtype": "float32"}


def _models(kind: str, *names: str, **fields: str) -> tuple[Model, ...]:
    return tuple(
        Model(name=name, raw=functools.partial(_published, kind, name), **fields) for name in names
    )


#: Variants that are not compared themselves have the layers of one that is.
TAESD = "published code at 5cccb12, to 1e-5{}; random weights"
TAEHV = "published code at 1f14a56, to 1e-5{}; random weights"
OTHER = "not compared itself; {} is, which differs only in channels"
_TAESD_MODELS = {
    "taef2": (
        *_models("taesd", "taesd", "taesdxl", tested=TAESD.format(" (taesd)")),
        *_models("taesd", "taesd3", "taef1", tested=OTHER.format("taesd")),
        *_models(
            "taesd", "taef2", tested=TAESD.format("") + "; real ones: a video back above 35 dB"
        ),
    ),
    "taesana": _models("taesd", "taesana", tested=TAESD.format("")),
}
_TAEHV_MODELS = {
    "taew2_1": (
        *_models("taehv", "taehv", "taew2_1", "taeos1_3", tested=TAEHV.format(" (taew2_1)")),
        *_models(
            "taehv",
            "taecvx",
            tested=TAEHV.format(""),
            decodes="yes, all frames of 2, 4, … latents, all but the last 3 of others",
        ),
    ),
    "taew2_2_super": (
        *_models("taehv", "taehv1_5", tested=OTHER.format("taew2_2")),
        *_models("taehv", "taehv1_5_super", tested=OTHER.format("taew2_2_super")),
        *_models("taehv", "taew2_2", "taew2_2_super", tested=TAEHV.format("")),
    ),
}
CASES = (
    Case(
        name="taesd without decoder",
        kind="taesd",
        raw=functools.partial(_taesd, "taesd", has_decoder=False),
        frames=(1, 2, 5),
        rounding=0.0,
        decodes=r"TAESD taesd has its decoder in a separate file.*Set encoder.decoder",
    ),
    *(
        Case(
            name=variant,
            kind="taesd",
            raw=functools.partial(_taesd, variant),
            frames=(1, 2, 5),
            grids=((1, 2), (2, 1), (2, 2)),
            rounding=0.0,
            models=models,
            chunking="frame by frame",
        )
        for variant, models in _TAESD_MODELS.items()
    ),
    *(
        Case(
            name=variant,
            kind="taehv",
            raw=functools.partial(_taehv, variant),
            frames=(4, 8, 12),
            illegal_frames={1: "4", 6: "4 or 8", 81: "80 or 84"},
            undecoded=3,
            models=models,
            chunking="4, 4, … frames, past carried over",
        )
        for variant, models in _TAEHV_MODELS.items()
    ),
    Case(
        name="taeltx2_3",
        kind="taehv",
        raw=functools.partial(_taehv, "taeltx2_3"),
        frames=(8, 16),
        illegal_frames={4: "8", 81: "80 or 88"},
        grids=((1, 2), (2, 1)),
        undecoded=7,
        models=_models("taehv", "taeltx_2", "taeltx2_3"),
        chunking="8, 8, … frames, past carried over",
        tested=TAEHV.format(" (taeltx_2)"),
    ),
)
