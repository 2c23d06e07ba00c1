"""VQGAN ids of every frame, [T, h, w], from `.ckpt` files of taming-transformers and latent-diffusion.

TECO and the reproductions of Genie train on these: 16x16 ids of a 256x256 frame for a VQGAN of
stride 16. Frames do not see one another, so any cut in time is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from latentcache.config.sections import Section
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import FRAMES_AT_ONCE, DiscreteEncoder, nearest_code
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint
from latentcache.encoders.tokenizers.vqgan_layers import Autoencoder, Shape
from latentcache.errors import ConfigError

MODEL_CLASS = "VQGAN"
#: Input values of the model: x / 127.5 - 1 in float64, then rounded, as in its data sets.
LEVELS = torch.from_numpy((np.arange(256) / 127.5 - 1.0).astype(np.float32))
_CODEBOOK = "quantize.embedding.weight"
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", _CODEBOOK)


class Config(Section):
    """The encoder `vqgan`. It computes in float32, as it was published."""

    kind: Literal["vqgan"]
    checkpoint: str = Field(
        min_length=1,
        description="Path of the .ckpt file. The architecture is read from its tensors.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the shapes of the tensors."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    loaded = _select(trainer_checkpoint.read(file, only_shapes=True))
    with file.architecture_of(MODEL_CLASS):
        stride = Shape.of(loaded).stride
    ids = IdSpec(codebook_size=loaded.shape(_CODEBOOK, 2)[0])
    return LatentSpec(
        encoder=config.kind,
        model_class=MODEL_CLASS,
        channels=1,
        stride=(1, stride, stride),
        pixel_layout="BCHW",
        frame_rule=FrameRule(),
        stored="ids",
        dtype=ids.dtype,
        exactness="prefix_exact",
        weights_sha256=file.sha256(),
        ids=ids,
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `revision` counts changes of the arithmetic."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    return {
        "kind": config.kind,
        "model_class": MODEL_CLASS,
        "revision": 1,
        "weights_sha256": file.sha256(),
    }


def quantiser(config: Config) -> Mapping[str, torch.Tensor]:
    """Return the codebook."""
    loaded = trainer_checkpoint.read(locate(config.checkpoint, "encoder.checkpoint"))
    return trainer_checkpoint.part(loaded, "quantize.embedding.")


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiscreteEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    loaded = _select(trainer_checkpoint.read(file))
    with file.architecture_of(MODEL_CLASS), torch.device("meta"):
        network = VQGAN(Shape.of(loaded), *loaded.shape(_CODEBOOK, 2))
    trainer_checkpoint.load_into(network, loaded)
    return DiscreteEncoder(network.to(device), spec, device, LEVELS)


def _select(loaded: TrainerCheckpoint) -> TrainerCheckpoint:
    """Leave out the discriminator, the loss and averages of the codebook. Raises ConfigError."""
    unknown = {
        "quantize.proj.weight": "draws its ids with Gumbel noise, so they differ from call to call",
        "quantize.used": "renumbers its ids by a table that is not part of the checkpoint's architecture",
    }
    for name, what in unknown.items():
        if name in loaded.tensors:
            raise ConfigError(
                f"encoder.checkpoint: {loaded.file.path.name} has the tensor {name}: its quantiser {what}. "
                "The kind vqgan takes the nearest code of a codebook. Write your own module for "
                "it and name that module in encoder.kind."
            )
    return loaded.select(*_PARTS)


class Quantiser(nn.Module):
    """The codebook."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)


class VQGAN(Autoencoder):
    """A `discrete.Tokenizer` that takes the frames one by one; pixel values in [-1, 1]."""

    def __init__(self, shape: Shape, codes: int, channels: int) -> None:
        super().__init__(shape)
        self.quantize = Quantiser(codes, channels)

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, T, h, w]."""
        frames_NCHW = values_BCTHW.transpose(1, 2).flatten(0, 1)
        ids_Nhw = torch.cat([self._frame_ids(x) for x in torch.split(frames_NCHW, FRAMES_AT_ONCE)])
        return ids_Nhw.view(len(values_BCTHW), -1, *ids_Nhw.shape[1:])

    def _frame_ids(self, frames_NCHW: torch.Tensor) -> torch.Tensor:
        latents_NhwC = self.to_latents(frames_NCHW).movedim(1, -1)
        ids = nearest_code(latents_NhwC.flatten(0, -2), self.quantize.embedding.weight)
        return ids.view(latents_NhwC.shape[:-1])

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values [B, 3, T, H, W] of ids [B, T, h, w]."""
        codes_NChw = functional.embedding(
            ids.flatten(0, 1), self.quantize.embedding.weight
        ).movedim(-1, 1)
        images = [
            self.to_images(codes.contiguous()) for codes in torch.split(codes_NChw, FRAMES_AT_ONCE)
        ]
        images_NCHW = torch.cat(images)
        return images_NCHW.view(len(ids), -1, *images_NCHW.shape[1:]).transpose(1, 2)
