"""VideoGPT's VQ-VAE: ids [t, h, w] from its `.ckpt` files, such as `ucf101_stride4x4x4`.

Its attention sees the whole clip in both directions of time. Any other length or chunking gives other
ids, so a clip is encoded whole. Normalisation uses the running statistics, and the codebook stays as it
was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive, Section
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import DiscreteEncoder
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint
from latentcache.encoders.tokenizers.videogpt_model import VQVAE, Shape
from latentcache.errors import ConfigError

MODEL_CLASS = "VideoGPT VQ-VAE"
#: Input values of the model: x / 255 - 0.5 in float32, as in its data set.
LEVELS = torch.arange(256, dtype=torch.float32) / 255.0 - 0.5


class Config(Section):
    """The encoder `videogpt`. It computes in float32, as it was published."""

    kind: Literal["videogpt"]
    checkpoint: str = Field(min_length=1, description="Path of the .ckpt file of the VQ-VAE.")
    stride: tuple[Positive, Positive, Positive] | None = Field(
        default=None,
        description="Pixels per id along T, H, W. Omitted: the checkpoint's own `downsample`; "
        "required if it has none, because the tensors do not say it.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the shapes of the tensors and the trainer's settings."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    with file.architecture_of(MODEL_CLASS):
        shape = _shape(config, trainer_checkpoint.read(file, only_shapes=True))
    ids = IdSpec(codebook_size=shape.codes)
    return LatentSpec(
        encoder=config.kind,
        model_class=MODEL_CLASS,
        channels=1,
        stride=shape.stride,
        frame_rule=FrameRule(multiple=shape.stride[0], minimum=shape.stride[0]),
        stored="ids",
        dtype=ids.dtype,
        pixel_range=(-0.5, 0.5),
        exactness="exact",
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
        "stride": list(describe(config, dtype="").stride),
    }


def quantiser(config: Config) -> Mapping[str, torch.Tensor]:
    """Return the codebook."""
    loaded = trainer_checkpoint.read(locate(config.checkpoint, "encoder.checkpoint"))
    return {"weight": trainer_checkpoint.part(loaded, "codebook.")["embeddings"]}


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiscreteEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    loaded = trainer_checkpoint.read(file)
    with file.architecture_of(MODEL_CLASS), torch.device("meta"):
        network = VQVAE(_shape(config, loaded))
    trainer_checkpoint.load_into(network, loaded)
    return DiscreteEncoder(network.to(device), spec, device, LEVELS)


def _shape(config: Config, loaded: TrainerCheckpoint) -> Shape:
    codes, code_channels = loaded.shape("codebook.embeddings", 2)
    shape = Shape(
        hidden=loaded.shape("encoder.conv_last.conv.weight", 5)[0],
        # The last entry of the stack is a BatchNorm, without blocks of its own.
        blocks=loaded.count("encoder.res_stack.{}.block."),
        codes=codes,
        code_channels=code_channels,
        stride=_stride(config, loaded.settings.get("downsample")),
    )
    if len(shape.steps) != loaded.count("encoder.convs.{}."):
        raise ConfigError(
            f"encoder.stride: {list(shape.stride)} needs {len(shape.steps)} downsampling convolutions, "
            f"but {loaded.file.path.name} has {loaded.count('encoder.convs.{}.')}: the ids would belong to "
            "other positions. Set encoder.stride to what the model was trained with."
        )
    return shape


def _stride(config: Config, trained: Any) -> tuple[int, int, int]:
    """Return the stride of the checkpoint's settings, or of the config if it has none."""
    stride = config.stride if trained is None else tuple(int(size) for size in trained)
    if stride is None:
        raise ConfigError(
            "encoder.stride: the checkpoint does not say how far the model reduces time, height and "
            "width, and its tensors do not either. Set encoder.stride, such as [4, 4, 4]."
        )
    if config.stride not in (None, stride):
        raise ConfigError(
            f"encoder.stride is {list(config.stride or ())}, but the checkpoint was trained with "
            f"{list(stride)}. Remove encoder.stride."
        )
    if len(stride) != 3 or max(stride) < 4 or any(size & (size - 1) for size in stride):
        raise ConfigError(
            f"encoder.stride: {list(stride)} is not one of a VideoGPT VQ-VAE. Give three powers of 2, "
            "at least one of them 4."
        )
    return stride
