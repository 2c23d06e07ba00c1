"""VQGAN ids of every frame, [T, h, w], from `.ckpt` files of taming-transformers and latent-diffusion.

TECO and the reproductions of Genie train on these: 16x16 ids of a 256x256 frame for a VQGAN of
stride 16. Frames do not see one another, so any cut in time is exact.

A GumbelVQ has logits in place of a nearest code. The published code adds Gumbel noise to them, even in
evaluation, so its ids differ from call to call. `gumbel: argmax` takes the largest logit: the likeliest of
its ids. The recipe says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from latentcache.config.base import Section
from latentcache.core.spec import IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import (
    DiscreteEncoder,
    frame_spec,
    nearest_code,
    per_frame,
)
from latentcache.encoders.tokenizers.per_frame import PerFrameEncoder
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint
from latentcache.encoders.tokenizers.vqgan_layers import Autoencoder, Shape
from latentcache.errors import ConfigError

MODEL_CLASS = "VQGAN"
#: Input values of the model: x / 127.5 - 1 in float64, then rounded, as in its data sets.
LEVELS = torch.from_numpy((np.arange(256) / 127.5 - 1.0).astype(np.float32))
CODEBOOK = "quantize.embedding.weight"
#: Of a GumbelVQ.
_EMBED, _PROJECTION = "quantize.embed.weight", "quantize.proj.weight"
PARTS = (
    *("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
    *(CODEBOOK, _EMBED, "quantize.proj."),
)


class Config(Section):
    """The encoder `vqgan`. It computes in float32, as it was published."""

    kind: Literal["vqgan"]
    checkpoint: str = Field(
        min_length=1,
        description="Path of the .ckpt file. The architecture is read from its tensors.",
    )
    gumbel: Literal["argmax"] | None = Field(
        default=None,
        description="For a GumbelVQ, whose published ids are drawn with noise: argmax takes the likeliest.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the shapes of the tensors."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    loaded = _select(config, trainer_checkpoint.read(file, only_shapes=True))
    with file.architecture_of(MODEL_CLASS):
        stride = Shape.of(loaded).stride
    ids = IdSpec(codebook_size=_sizes(config, loaded)[0])
    return frame_spec(config.kind, MODEL_CLASS, stride, ids, file.sha256())


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `revision` counts changes of the arithmetic."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    return {
        "kind": config.kind,
        "model_class": MODEL_CLASS,
        "revision": 1,
        "weights_sha256": file.sha256(),
        **({} if config.gumbel is None else {"gumbel": config.gumbel}),
    }


def quantiser(config: Config) -> Mapping[str, torch.Tensor]:
    """Return the codebook."""
    loaded = trainer_checkpoint.read(locate(config.checkpoint, "encoder.checkpoint"))
    name = CODEBOOK if config.gumbel is None else _EMBED
    return trainer_checkpoint.part(loaded, name.removesuffix("weight"))


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiscreteEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    loaded = _select(config, trainer_checkpoint.read(file))
    with file.architecture_of(MODEL_CLASS), torch.device("meta"):
        kind = Nearest if config.gumbel is None else Likeliest
        network = VQGAN(Shape.of(loaded), kind(*_sizes(config, loaded)))
    trainer_checkpoint.load_into(network, loaded)
    return PerFrameEncoder(network.to(device), spec, device, LEVELS)


def _sizes(config: Config, loaded: TrainerCheckpoint) -> torch.Size:
    """Return the numbers of codes and of their channels."""
    return loaded.shape(CODEBOOK if config.gumbel is None else _EMBED, 2)


def _select(config: Config, loaded: TrainerCheckpoint) -> TrainerCheckpoint:
    """Leave out the discriminator, the loss and averages of the codebook. Raises ConfigError."""
    name = loaded.file.path.name
    if "quantize.used" in loaded.tensors:
        raise ConfigError(
            f"encoder.checkpoint: {name} has the tensor quantize.used: its quantiser renumbers its ids by "
            "a table that is not part of the checkpoint's architecture. Write your own module for it and "
            "name that module in encoder.kind."
        )
    if (_PROJECTION in loaded.tensors) != (config.gumbel is not None):
        raise ConfigError(
            f"encoder.checkpoint: {name} has the tensor {_PROJECTION}: its quantiser draws its ids with "
            "Gumbel noise, so they differ from call to call. Set encoder.gumbel to argmax to take the "
            "likeliest ones."
            if config.gumbel is None
            else f"encoder.gumbel is argmax, but {name} has no tensor {_PROJECTION}: it has a codebook and "
            "no logits. Leave encoder.gumbel out."
        )
    return loaded.select(*PARTS)


class Quantiser(nn.Module, ABC):
    """What makes ids of latents, and vectors of ids."""

    @abstractmethod
    def codes(self) -> torch.Tensor:
        """Return the codebook [codes, C], as the decoder takes it."""

    @abstractmethod
    def ids(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [N, h, w]."""


class Nearest(Quantiser):
    """An id is that of the nearest code."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def codes(self) -> torch.Tensor:
        """Return the codebook [codes, C]."""
        return self.embedding.weight

    def ids(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [N, h, w]."""
        latents_NhwC = latents_NChw.movedim(1, -1)
        return nearest_code(latents_NhwC.flatten(0, -2), self.codes()).view(latents_NhwC.shape[:-1])


class Likeliest(Quantiser):
    """An id is that of the largest logit; a convolution of one pixel gives a logit per code."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, codes, 1)
        self.embed = nn.Embedding(codes, channels)

    def codes(self) -> torch.Tensor:
        """Return the codebook [codes, C]."""
        return self.embed.weight

    def ids(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [N, h, w]."""
        ids: torch.Tensor = self.proj(latents_NChw).argmax(1)
        return ids


class VQGAN(Autoencoder):
    """A `discrete.Tokenizer` that takes the frames one by one; pixel values in [-1, 1]."""

    def __init__(self, shape: Shape, quantiser: Quantiser) -> None:
        super().__init__(shape)
        self.quantize = quantiser

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, T, h, w]."""
        return per_frame(self._frame_ids, values_BCTHW.transpose(1, 2))

    def _frame_ids(self, frames_NCHW: torch.Tensor) -> torch.Tensor:
        return self.quantize.ids(self.to_latents(frames_NCHW))

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values [B, 3, T, H, W] of ids [B, T, h, w]."""
        codes_BTChw = functional.embedding(ids, self.quantize.codes()).movedim(-1, 2)
        return per_frame(self.to_images, codes_BTChw).transpose(1, 2)
