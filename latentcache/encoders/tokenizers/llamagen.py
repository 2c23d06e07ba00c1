"""LlamaGen's image tokenizer: ids of every frame, [T, h, w], from its `.pt` files (arXiv:2406.06525).

Halton-MaskGIT trains on these, too. A latent is compared with 16,384 codes of 8 channels after both
are scaled to length 1. The network is that of taming-transformers under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch.nn import functional

from latentcache.config.base import Section
from latentcache.core.spec import IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import CENTRED, DiscreteEncoder, frame_spec
from latentcache.encoders.tokenizers.per_frame import PerFrameEncoder
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint
from latentcache.encoders.tokenizers.vqgan import CODEBOOK, PARTS, VQGAN, Nearest
from latentcache.encoders.tokenizers.vqgan_layers import Shape
from latentcache.errors import ConfigError

MODEL_CLASS = "LlamaGen VQ"
LEVELS = CENTRED
_KEYS = {"averaged": "ema", "last": "model"}
#: Their names of layers, and those of taming-transformers.
_NAMES = {
    ".mid.0.": ".mid.block_1.",
    ".mid.1.": ".mid.attn_1.",
    ".mid.2.": ".mid.block_2.",
    ".res.": ".block.",
}
_LEVEL = re.compile(r"(encoder|decoder)\.conv_blocks\.(\d+)\.")


class Config(Section):
    """The encoder `llamagen`. It computes in float32."""

    kind: Literal["llamagen"]
    checkpoint: str = Field(
        min_length=1,
        description="Path of the .pt file, such as vq_ds16_c2i.pt. Sizes are read from its tensors.",
    )
    weights: Literal["averaged", "last"] | None = Field(
        default=None,
        description="Which weights of a file that holds both: averaged (ema) or last (model). Published "
        "files hold one of them.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the shapes of the tensors."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    loaded = _read(config, only_shapes=True)
    with file.architecture_of(MODEL_CLASS):
        stride = Shape.of(loaded).stride
    ids = IdSpec(codebook_size=loaded.shape(CODEBOOK, 2)[0])
    return frame_spec(config.kind, MODEL_CLASS, stride, ids, file.sha256())


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `revision` counts changes of the arithmetic."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    chosen = {} if config.weights is None else {"weights": config.weights}
    return {
        "kind": config.kind,
        "model_class": MODEL_CLASS,
        "revision": 1,
        "weights_sha256": file.sha256(),
        **chosen,
    }


def quantiser(config: Config) -> Mapping[str, torch.Tensor]:
    """Return the codebook, of length 1: what its decoder takes."""
    return {"weight": _unit(_read(config).tensors[CODEBOOK].float())}


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiscreteEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    loaded = _read(config)
    with file.architecture_of(MODEL_CLASS), torch.device("meta"):
        network = VQGAN(Shape.of(loaded), Directions(*loaded.shape(CODEBOOK, 2)))
    trainer_checkpoint.load_into(network, loaded)
    return PerFrameEncoder(network.to(device), spec, device, LEVELS)


def _read(config: Config, *, only_shapes: bool = False) -> TrainerCheckpoint:
    """Return the tensors under taming-transformers' names. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    wanted = list(_KEYS.values()) if config.weights is None else [_KEYS[config.weights]]
    loaded = trainer_checkpoint.read(file, only_shapes=only_shapes, keys=wanted)
    if set(_KEYS.values()) <= set(loaded.found):
        raise ConfigError(
            f"encoder.checkpoint: {file.path.name} holds ema and model, the average of the weights and the "
            "last ones, which give other ids. Set encoder.weights to averaged or last."
        )
    if config.weights is not None and not {*wanted} & {*loaded.found}:
        raise ConfigError(
            f"encoder.weights is {config.weights}, but {file.path.name} has no {wanted[0]!r}. Leave "
            "encoder.weights out: the file holds one set of weights."
        )
    loaded.shape("encoder.conv_blocks.0.res.0.conv1.weight", 4)
    highest = loaded.count("decoder.conv_blocks.{}.") - 1
    tensors = {_named(name, highest): tensor for name, tensor in loaded.tensors.items()}
    return replace(loaded, tensors=tensors).select(*PARTS)


def _named(name: str, highest: int) -> str:
    """Return taming-transformers' name of a tensor; its decoder's levels count from full resolution."""

    def level(match: re.Match[str]) -> str:
        half, number = match[1], int(match[2])
        return f"encoder.down.{number}." if half == "encoder" else f"decoder.up.{highest - number}."

    name = _LEVEL.sub(level, name)
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors [..., C] scaled to length 1."""
    return functional.normalize(vectors, dim=-1)


class Directions(Nearest):
    """A `Nearest` for which only the direction of latents and codes counts."""

    def codes(self) -> torch.Tensor:
        """Return the codebook [codes, C], of length 1."""
        return _unit(super().codes())

    def ids(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [N, h, w]."""
        return super().ids(_unit(latents_NChw.movedim(1, -1)).movedim(-1, 1))
