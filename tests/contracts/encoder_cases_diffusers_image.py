from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.contracts.encoder_cases import Case, Model
from tests.tools.tiny_models import save


def _raw(name: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    save(name, folder)
    return {
        "kind": "diffusers_image",
        "model": str(folder),
        "dtype": "float32",
        "store": "moments",
        **options,
    }


def published(
    name: str,
    class_name: str,
    *,
    buffers: int = 0,
    kind: str = "diffusers_image",
    store: str = "mean",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Return a model of which `describe` reads config.json, and buffers of so many channels.

    settings: of the published config.json, where they are not the class's defaults. What the buffers
    hold is made up: the table does not show it.
    """

    def raw(folder: Path) -> dict[str, Any]:
        (folder / "config.json").write_text(json.dumps({"_class_name": class_name, **settings}))
        tensors = {
            name: torch.ones(buffers or 1)
            for name in ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")
        }
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        section = {"kind": kind, "model": str(folder), "dtype": "float32", "store": store}
        return {**section, **(options or {})}

    return Model(name=name, raw=raw)


def _kl(name: str, channels: int, factor: float, shift: float | None = None) -> Model:
    """Sizes and factors of the config.json of each, on the hub."""
    return published(
        name,
        "AutoencoderKL",
        latent_channels=channels,
        block_out_channels=[128, 256, 512, 512],
        scaling_factor=factor,
        shift_factor=shift,
    )


TESTED = "diffusers, bit for bit; random weights"


#: Of float32: the sums of a batch are made in another order. How much that shows depends on the CPU.
BATCH_ROUNDING = 1e-5


def _case(
    name: str,
    model: str = "",
    *models: Model,
    tested: str = TESTED,
    batch_rounding: float = BATCH_ROUNDING,
    **options: Any,
) -> Case:
    return Case(
        name=name,
        kind="diffusers_image",
        raw=functools.partial(_raw, model or name, options),
        frames=(1, 2, 3),
        rounding=0.0,
        batch_rounding=batch_rounding,
        models=models,
        chunking="frame by frame",
        tested=tested,
    )


CASES = (
    _case("kl", "", _kl("SD 1 and 2", 4, 0.18215), _kl("SDXL", 4, 0.13025)),
    _case("flux", "", _kl("SD 3", 16, 1.5305, 0.0609), _kl("FLUX.1", 16, 0.3611, 0.1159)),
    _case("flux2", "", published("FLUX.2", "AutoencoderKLFlux2", buffers=128)),
    _case(
        "dc",
        "",
        published("DC-AE f32c32 (Sana)", "AutoencoderDC", scaling_factor=0.41407),
        batch_rounding=2e-5,  # its attention divides by sums; 1.1e-5 on an AMD EPYC with AVX-512
        store="mean",
    ),
    _case("tiny", "", published("TAESD in diffusers' form", "AutoencoderTiny"), store="mean"),
    _case("vq", store="ids", pixel_range=[-1, 1]),
    _case(
        "amused",
        "vq",
        published(
            "aMUSEd",
            "VQModel",
            store="ids",
            options={"pixel_range": [0, 1]},
            num_vq_embeddings=8192,
            latent_channels=64,
            block_out_channels=[128, 256, 256, 512, 768],
        ),
        tested="diffusers, bit for bit, pixels in [-1, 1]; random weights",
        store="ids",
        pixel_range=[0, 1],
    ),
    _case(
        "movq",
        "",
        published(  # kandinsky-community/kandinsky-2-2-decoder, movq/config.json
            "MoVQ (Kandinsky 2)",
            "VQModel",
            options={"pixel_range": [-1, 1]},
            num_vq_embeddings=16384,
            latent_channels=4,
            vq_embed_dim=4,
            block_out_channels=[128, 256, 256, 512],
        ),
        store="mean",
        pixel_range=[-1, 1],
    ),
)
