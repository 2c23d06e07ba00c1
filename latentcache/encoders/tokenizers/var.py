"""The multi-scale tokenizer of VAR (Tian et al. 2024, arXiv:2404.02905): 680 ids [n] of a 256x256 image.

Ids are stored scale after scale, each scale in raster order. `VAREncoder.teacher_input` makes a VAR
transformer's input from them, [679, 32] for the published ten scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch.nn import functional

from latentcache.config.base import Positive, Section
from latentcache.core.codebook import MultiScaleCodebook
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import DiscreteEncoder, check_ids, nearest_code
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint
from latentcache.encoders.tokenizers.vqgan_layers import Autoencoder, Shape
from latentcache.errors import ConfigError

MODEL_CLASS = "VAR VQVAE"
#: Input values of the model: x / 255 in float32, then doubled, then less one, as in its data set.
LEVELS = (torch.arange(256, dtype=torch.float32) / 255.0) * 2 - 1
_CODEBOOK = "quantize.embedding.weight"
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
#: The buffer that counts how often training used each code; it has one row per scale of the training.
_HITS = "quantize.ema_vocab_hit_SV"


class Config(Section):
    """The encoder `var`, for images. It computes in float32, as it was published."""

    kind: Literal["var"]
    checkpoint: str = Field(min_length=1, description="Path of vae_ch160v4096z32.pth.")
    scales: Annotated[list[Positive], Field(min_length=2)] = Field(
        description="Side lengths of the scales, ascending: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16] for "
        "images of 256x256. The last one sets the size of the images."
    )

    @field_validator("scales")
    @classmethod
    def _ascending(cls, scales: list[int]) -> list[int]:
        if sorted(set(scales)) != scales:
            raise ValueError(f"{scales} are not ascending")
        return scales


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the shapes of the tensors."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    loaded = _select(trainer_checkpoint.read(file, only_shapes=True))
    with file.architecture_of(MODEL_CLASS):
        stride = Shape.of(loaded).stride
    side = stride * config.scales[-1]
    codes, _ = loaded.shape(_CODEBOOK, 2)
    ids = IdSpec(codebook_size=codes, scales=tuple(config.scales))
    return LatentSpec(
        encoder=config.kind,
        model_class=MODEL_CLASS,
        channels=1,
        stride=(1, stride, stride),
        pixel_layout="BCHW",
        frame_rule=FrameRule(maximum=1),  # its ids have no time axis
        stored="ids",
        dtype=ids.dtype,
        exactness="exact",
        weights_sha256=file.sha256(),
        ids=ids,
        fixed_size=(side, side),
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `revision` counts changes of the arithmetic."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    return {
        "kind": config.kind,
        "model_class": MODEL_CLASS,
        "revision": 1,
        "weights_sha256": file.sha256(),
        "scales": list(config.scales),
    }


def quantiser(config: Config) -> Mapping[str, torch.Tensor]:
    """Return the codebook, and the convolutions that its scales pass through."""
    loaded = _select(trainer_checkpoint.read(locate(config.checkpoint, "encoder.checkpoint")))
    return trainer_checkpoint.part(loaded, "quantize.")


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> VAREncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    loaded = _select(trainer_checkpoint.read(file))
    with file.architecture_of(MODEL_CLASS), torch.device("meta"):
        network = VARTokenizer(
            Shape.of(loaded),
            config.scales,
            codes=loaded.shape(_CODEBOOK, 2)[0],
            phis=loaded.count("quantize.quant_resi.qresi_ls.{}."),
        )
    trainer_checkpoint.load_into(network, loaded)
    return VAREncoder(network.to(device), spec, device, LEVELS)


def _select(loaded: TrainerCheckpoint) -> TrainerCheckpoint:
    loaded.shape(_CODEBOOK, 2)
    if not loaded.count("quantize.quant_resi.qresi_ls.{}."):
        raise ConfigError(
            f"encoder.checkpoint: {loaded.file.path.name} has no quantize.quant_resi.qresi_ls: its scales "
            "share one convolution or have one each. The kind var supports only the published form, "
            "in which four are shared between all scales."
        )
    kept = {name: t for name, t in loaded.select(*_PARTS).tensors.items() if name != _HITS}
    return replace(loaded, tensors=kept)


class Quantiser(MultiScaleCodebook):
    """Quantises what coarser scales left over, from the coarsest to the finest."""

    def to_ids(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, n] of latents whose sides are the last scale's."""
        rest = latents_BChw.clone()
        ids = []
        for i, side in enumerate(self.scales):
            shrunk = (
                rest if i == self.last else functional.interpolate(rest, (side, side), mode="area")
            )
            vectors = shrunk.permute(0, 2, 3, 1).flatten(0, -2)
            ids.append(nearest_code(vectors, self.embedding.weight).view(len(rest), -1))
            rest -= self.part(i, ids[-1])
        return torch.cat(ids, dim=1)


class VARTokenizer(Autoencoder):
    """A `discrete.Tokenizer` of single frames; pixel values in [-1, 1]."""

    def __init__(self, shape: Shape, scales: Sequence[int], *, codes: int, phis: int) -> None:
        super().__init__(shape)
        self.quantize = Quantiser(codes, shape.code_channels, phis, scales)

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, n]."""
        return self.quantize.to_ids(self.to_latents(values_BCTHW.squeeze(2)))

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values [B, 3, 1, H, W]."""
        return self.to_images(self.quantize.to_latents(ids)).unsqueeze(2)


class VAREncoder(DiscreteEncoder):
    """A `DiscreteEncoder` that can also make a VAR transformer's input from stored ids."""

    _tokenizer: VARTokenizer

    def teacher_input(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the input for ids [B, n] of any integer type: float32 [B, n - 1, code channels]."""
        with exact_kernels(self._device):
            return self._tokenizer.quantize.teacher_input(
                check_ids(self.spec, ids).to(self._device)
            )
