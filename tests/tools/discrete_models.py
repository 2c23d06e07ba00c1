"""Small discrete tokenizers with fixed weights, saved as their authors' trainers save them."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.tools.published import Published


class Callback:
    """A class of a trainer, whose name a checkpoint holds: nothing of it may run when it is read."""

    def __init__(self) -> None:
        self.best = torch.tensor(1.0)

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code that a checkpoint names was run")


def save_videogpt(folder: Path, *, name: str = "videogpt", **changes: Any) -> dict[str, Any]:
    """Save a VQ-VAE of 64 codes as Lightning does, of stride 4x4x4; return the encoder section."""
    published = Published.load(name)
    arguments = argparse.Namespace(downsample=published.settings["downsample"], n_codes=64)
    contents = {
        "epoch": 3,
        "state_dict": published.tensors,
        "hyper_parameters": {"args": arguments},
        "callbacks": {Callback: {"last": Callback()}},
    }
    torch.save({**contents, **changes}, folder / "ucf101.ckpt")
    return {"kind": "videogpt", "checkpoint": str(folder / "ucf101.ckpt")}


def save_vqgan(folder: Path, **more: torch.Tensor) -> dict[str, Any]:
    """Save a VQGAN of stride 4 and 64 codes with a piece of its discriminator."""
    tensors = {
        **Published.load("vqgan").tensors,
        "loss.discriminator.main.0.weight": torch.zeros(2),
        "quantize.embedding.cluster_size": torch.zeros(64),
        **more,
    }
    torch.save({"state_dict": tensors, "callbacks": {}}, folder / "last.ckpt")
    return {"kind": "vqgan", "checkpoint": str(folder / "last.ckpt")}


def save_gumbel(folder: Path, **changes: Any) -> dict[str, Any]:
    """Save a GumbelVQ of stride 4 and 64 codes."""
    torch.save({"state_dict": dict(Published.load("gumbel").tensors)}, folder / "gumbel.ckpt")
    checkpoint = str(folder / "gumbel.ckpt")
    return {"kind": "vqgan", "checkpoint": checkpoint, "gumbel": "argmax", **changes}


def save_llamagen(folder: Path, **contents: Any) -> dict[str, Any]:
    """Save LlamaGen's tokenizer of stride 4 and 64 codes, as published; contents: more of the file."""
    contents = {"model": dict(Published.load("llamagen").tensors), **contents}
    torch.save(contents, folder / "vq_ds4.pt")
    return {"kind": "llamagen", "checkpoint": str(folder / "vq_ds4.pt")}


def save_var(folder: Path) -> dict[str, Any]:
    """Save a VAR tokenizer of stride 16, four scales and 64 codes, as its bare state dict."""
    published = Published.load("var")
    torch.save(dict(published.tensors), folder / "vae.pth")
    scales = published.settings["scales"]
    return {"kind": "var", "checkpoint": str(folder / "vae.pth"), "scales": scales}


def save_open_magvit2(
    folder: Path,
    *,
    averaged: bool = True,
    weights: str = "averaged",
    name: str = "open_magvit2",
) -> dict[str, Any]:
    """Save a tokenizer of stride 4x8x8 and 10 bits; where averaged, the last weights are others.

    name: of other files: "open_magvit2_image" and "open_magvit2_1xgpt" are of images, of stride 4.
    """
    published = Published.load(name).tensors
    tensors: Mapping[str, torch.Tensor] = published
    if averaged:
        tensors = {name: tensor * 0.9 for name, tensor in published.items()} | {
            f"model_ema.{name.replace('.', '')}": tensor for name, tensor in published.items()
        }
    torch.save({"state_dict": dict(tensors)}, folder / f"{name}.ckpt")
    checkpoint = str(folder / f"{name}.ckpt")
    return {"kind": "open_magvit2", "checkpoint": checkpoint, "weights": weights}


class CosmosEncoder(nn.Module):
    """The interface of NVIDIA's encoder.jit: whole patches of 4x8x8, the first frame four times."""

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, len(levels) or 16, (4, 8, 8), stride=(4, 8, 8))
        self.register_buffer("levels", torch.tensor(levels or [1]))
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(6)]))
        self.discrete = bool(levels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = self.conv(torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], dim=2))
        if not self.discrete:
            return z, torch.zeros(1), torch.zeros(1)
        levels = (z.movedim(1, -1).sigmoid() * (self.levels - 1)).round()
        ids = (levels * self.basis).sum(-1).to(torch.int32)
        return ids, levels.movedim(-1, 1), torch.zeros(1)


class CosmosDecoder(nn.Module):
    """The interface of NVIDIA's decoder.jit."""

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(len(levels) or 16, 3, (4, 8, 8), stride=(4, 8, 8))
        self.register_buffer("levels", torch.tensor(levels or [1]))
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(6)]))
        self.discrete = bool(levels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if self.discrete:
            levels = (z.unsqueeze(-1) // self.basis) % self.levels
            z = (levels / self.levels).movedim(-1, 1)
        return self.conv(z)[:, :, 3:]


def save_cosmos(folder: Path, name: str = "DV4x8x8") -> dict[str, Any]:
    """Save both TorchScript files into a folder of this name, traced as NVIDIA's are."""
    model = folder / f"Cosmos-0.1-Tokenizer-{name}"
    model.mkdir()
    levels = [8, 8, 8, 5, 5, 5] if name.startswith("DV") else []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, which torch would rather have exported
        torch.manual_seed(0)
        pixels = torch.rand(1, 3, 5, 16, 16)
        encoder, decoder = CosmosEncoder(levels).eval(), CosmosDecoder(levels).eval()
        encoder.conv.weight.data.mul_(8)
        torch.jit.trace(encoder, pixels).save(model / "encoder.jit")
        torch.jit.trace(decoder, encoder(pixels)[0].detach()).save(model / "decoder.jit")
    return {
        "kind": "cosmos_tokenizer",
        "model": str(model),
        "dtype": "float32",
        "trust_torchscript": True,
    }


MAGVIT2_SETTINGS: dict[str, Any] = {
    "image_size": 32,
    "init_dim": 8,
    "codebook_size": 256,
    "layers": ["residual", ["compress_space", 16], "residual", "compress_space"],
}


def save_magvit2(folder: Path, **changes: Any) -> dict[str, Any]:
    """Save a VideoTokenizer of magvit2-pytorch as its own `save` does."""
    from magvit2_pytorch import VideoTokenizer

    settings = {**MAGVIT2_SETTINGS, **changes}
    layers = tuple(x if isinstance(x, str) else tuple(x) for x in settings["layers"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made_with = {**settings, "layers": layers}
        tokenizer = VideoTokenizer(**made_with, perceptual_loss_weight=0.0, use_gan=False)
    for name, tensor in tokenizer.state_dict().items():
        if name.endswith(".bias"):  # else a code is that of the biases and of the mean grey,
            tensor.zero_()
        if name == "conv_in.conv.weight":  # whatever the pixels
            tensor -= tensor.mean((1, 3, 4), keepdim=True)
    tokenizer.save(folder / "magvit2.pt")
    return {
        "kind": "magvit2",
        "checkpoint": str(folder / "magvit2.pt"),
        "settings": settings,
    }
