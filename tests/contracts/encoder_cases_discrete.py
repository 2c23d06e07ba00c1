from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from latentcache.config.files import load_config
from tests.contracts.encoder_cases import Case, Model, hollow
from tests.tools.discrete_models import (
    save_cosmos,
    save_gumbel,
    save_llamagen,
    save_magvit2,
    save_open_magvit2,
    save_var,
    save_videogpt,
    save_vqgan,
)
from tests.tools.published import Published


def _magvit2(folder: Path) -> dict[str, Any]:
    pytest.importorskip("magvit2_pytorch", reason="the extra magvit2 is not installed")
    return save_magvit2(folder)


def _checkpoint(
    kind: str, changes: Mapping[str, Sequence[int]], folder: Path, **others: Any
) -> dict[str, Any]:
    """Write the tiny model's tensors hollow, with the shapes that tell the published model."""
    shapes = {**_shapes(kind), **changes}
    return {"kind": kind, "checkpoint": hollow(folder / "model.ckpt", shapes, epoch=0, **others)}


def _videogpt(stride: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    arguments = {"args": argparse.Namespace(downsample=stride)}
    return _checkpoint(
        "videogpt", {"codebook.embeddings": (2048, 256)}, folder, hyper_parameters=arguments
    )


def _vqgan(codes: int, folder: Path) -> dict[str, Any]:
    """Five levels, as ch_mult [1, 1, 2, 2, 4] of taming-transformers' vqgan_imagenet_f16 makes."""
    levels = _levels(1, 1, 2, 2, 4)
    return _checkpoint("vqgan", {**levels, "quantize.embedding.weight": (codes, 256)}, folder)


def _gumbel(folder: Path) -> dict[str, Any]:
    """Four levels, as vqgan_gumbel_f8 has by its name, and 8,192 codes."""
    codes = {"quantize.embed.weight": (8192, 256), "quantize.proj.weight": (8192, 256, 1, 1)}
    shapes = {**_shapes("gumbel"), **_levels(1, 1, 2, 4), **codes}
    checkpoint = hollow(folder / "model.ckpt", shapes, epoch=0)
    return {"kind": "vqgan", "checkpoint": checkpoint, "gumbel": "argmax"}


def _llamagen(levels: int, folder: Path) -> dict[str, Any]:
    """16,384 codes of 8 channels, as both published files have."""
    shapes: dict[str, Sequence[int]] = {
        f"{half}.conv_blocks.{i}.res.0.conv1.weight": (128, 128, 3, 3)
        for half in ("encoder", "decoder")
        for i in range(levels)
    }
    return _checkpoint("llamagen", {**shapes, "quantize.embedding.weight": (16384, 8)}, folder)


def _open_magvit2_image(name: str, folder: Path) -> dict[str, Any]:
    """Five levels and 18 bits."""
    bits = {"encoder.conv_out.weight": (18, 512, 1, 1)}
    shapes = {**_shapes(name), **_levels(1, 1, 2, 2, 4), **bits}
    checkpoint = hollow(folder / "model.ckpt", shapes, epoch=0)
    return {"kind": "open_magvit2", "checkpoint": checkpoint, "weights": "last"}


def _levels(*widths: int) -> dict[str, Sequence[int]]:
    return {
        f"encoder.down.{i}.block.0.conv1.weight": (128 * m, 128, 3, 3) for i, m in enumerate(widths)
    }


def _shapes(name: str) -> dict[str, Sequence[int]]:
    return {name: tensor.shape for name, tensor in Published.load(name).tensors.items()}


def _var(scales: list[int], folder: Path) -> dict[str, Any]:
    """4,096 codes of 32 channels, as vae_ch160v4096z32.pth has by its name."""
    raw = _checkpoint("var", {"quantize.embedding.weight": (4096, 32)}, folder)
    return {**raw, "scales": scales}


def _open_magvit2(folder: Path) -> dict[str, Any]:
    """18 bits, as video_128_262144.ckpt has by its name."""
    bits = {"encoder.conv_out.conv_1.weight": (18, 512, 1, 1, 1)}
    return {**_checkpoint("open_magvit2", bits, folder), "weights": "last"}


def _cosmos(variant: str, folder: Path) -> dict[str, Any]:
    """Only the folder's name identifies a Cosmos tokenizer, and its file is hashed."""
    model = folder / f"Cosmos-0.1-Tokenizer-{variant}"
    model.mkdir()
    (model / "encoder.jit").write_bytes(b"")
    return {
        "kind": "cosmos_tokenizer",
        "model": str(model),
        "dtype": "float32",
        "trust_torchscript": True,
    }


def _magvit2_example(folder: Path) -> dict[str, Any]:
    """Nothing is published: the settings of configs/magvit2.yaml."""
    raw = load_config(str(CONFIGS / "magvit2.yaml")).encoder
    return {**raw, "checkpoint": hollow(folder / "magvit2.pt", {})}


def _cosmos_models(letters: str) -> tuple[Model, ...]:
    variants = (f"{letters}{stride}" for stride in ("4x8x8", "8x8x8", "8x16x16"))
    return tuple(
        Model(name=f"Cosmos 0.1 {name}", raw=functools.partial(_cosmos, name)) for name in variants
    )


CONFIGS = Path(__file__).parents[2] / "configs"
STAND_IN = "stand-ins for NVIDIA's files, bit for bit; neither their code nor their weights"
PUBLISHED_CODE = "ids of the published code, a tiny model; random weights"
VAR_SCALES = {
    "VAR, 256x256": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    "VAR, 512x512": [1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
}
#: The share of ids that may be near a tie.
TIES = 0.01
CASES = (
    Case(
        name="videogpt",
        kind="videogpt",
        raw=save_videogpt,
        frames=(4, 8, 16),
        illegal_frames={1: "4", 6: "4 or 8", 17: "16 or 20"},
        grids=((4, 6), (2, 3), (3, 2)),
        rounding=TIES,
        models=(
            Model(
                name="VideoGPT ucf101 and kinetics, stride 4x4x4",
                raw=functools.partial(_videogpt, (4, 4, 4)),
            ),
            Model(
                name="VideoGPT kinetics, stride 2x4x4", raw=functools.partial(_videogpt, (2, 4, 4))
            ),
            Model(
                name="VideoGPT bair, stride 4x2x2",
                raw=functools.partial(_videogpt, (4, 2, 2)),
                tested="not compared itself; strides 4x4x4 and 2x4x4 are",
            ),
        ),
        chunking="whole",
        tested=PUBLISHED_CODE,
    ),
    Case(
        name="vqgan",
        kind="vqgan",
        raw=save_vqgan,
        frames=(1, 2, 5, 17),
        grids=((4, 6), (2, 3), (3, 2)),
        rounding=TIES,
        models=tuple(
            Model(name=f"VQGAN f16, {codes:,} codes", raw=functools.partial(_vqgan, codes))
            for codes in (1024, 16384)
        ),
        chunking="frame by frame, up to 16 at once",
        tested=PUBLISHED_CODE,
    ),
    Case(
        name="gumbel",
        kind="vqgan",
        raw=save_gumbel,
        frames=(1, 2, 17),
        grids=((8, 8), (4, 6), (6, 4)),
        rounding=TIES,
        models=(Model(name="GumbelVQ f8, 8,192 codes (`gumbel: argmax`)", raw=_gumbel),),
        chunking="frame by frame, up to 16 at once",
        tested="ids of the published code without its noise, a tiny model; random weights",
    ),
    Case(
        name="llamagen",
        kind="llamagen",
        raw=save_llamagen,
        frames=(1, 2, 17),
        grids=((4, 6), (2, 3), (3, 2)),
        rounding=TIES,
        models=tuple(
            Model(name=f"LlamaGen VQ-{1 << levels - 1}", raw=functools.partial(_llamagen, levels))
            for levels in (4, 5)
        ),
        chunking="frame by frame, up to 16 at once",
        tested=PUBLISHED_CODE,
    ),
    Case(
        name="var",
        kind="var",
        raw=save_var,
        frames=(1, 1),
        illegal_frames={2: "1", 17: "1"},
        rounding=TIES,
        models=tuple(
            Model(name=name, raw=functools.partial(_var, scales))
            for name, scales in VAR_SCALES.items()
        ),
        chunking="whole",
        tested=PUBLISHED_CODE + ", four scales",
    ),
    Case(
        name="open_magvit2",
        kind="open_magvit2",
        raw=save_open_magvit2,
        frames=(1, 5, 17),
        illegal_frames={2: "1 or 5", 16: "13 or 17"},
        rounding=TIES,
        models=(Model(name="Open-MAGVIT2 video", raw=_open_magvit2),),
        chunking="whole",
        tested=PUBLISHED_CODE,
    ),
    Case(
        name="open_magvit2_image",
        kind="open_magvit2",
        raw=functools.partial(save_open_magvit2, name="open_magvit2_image"),
        frames=(1, 2, 17),
        grids=((4, 6), (2, 3), (3, 2)),
        rounding=TIES,
        models=(
            Model(
                name="Open-MAGVIT2 image, f16",
                raw=functools.partial(_open_magvit2_image, "open_magvit2_image"),
            ),
            Model(
                name="1xgpt's image tokenizer",
                raw=functools.partial(_open_magvit2_image, "open_magvit2_1xgpt"),
            ),
        ),
        chunking="frame by frame, up to 16 at once",
        tested=PUBLISHED_CODE,
    ),
    Case(
        name="cosmos_dv",
        kind="cosmos_tokenizer",
        raw=save_cosmos,
        frames=(1, 5, 17),
        illegal_frames={2: "1 or 5", 16: "13 or 17", 34: "33 or 37"},
        rounding=TIES,
        is_network=False,  # TorchScript's inner modules call no hooks
        models=_cosmos_models("DV"),
        chunking="whole",
        tested=STAND_IN,
    ),
    Case(
        name="cosmos_cv",
        kind="cosmos_tokenizer",
        raw=lambda folder: save_cosmos(folder, "CV4x8x8"),
        frames=(1, 5, 17),
        illegal_frames={2: "1 or 5", 16: "13 or 17"},
        is_network=False,
        models=_cosmos_models("CV"),
        chunking="whole",
        tested=STAND_IN,
    ),
    Case(
        name="magvit2",
        kind="magvit2",
        raw=_magvit2,
        frames=(1, 3, 9),
        rounding=TIES,
        models=(Model(name="magvit2-pytorch, configs/magvit2.yaml", raw=_magvit2_example),),
        chunking="whole",
        tested="the package's own ids, where it is installed; random weights",
    ),
)
