"""Open-MAGVIT2's tokenizers: 18-bit ids [t, h, w] of videos or of single frames, from their `.ckpt` files.

That of videos was trained on clips of 17x128x128, whose ids are 5x16x16. Other lengths and sizes are
possible. They change the statistics of its normalisation, so they do not match the published results.

That of images (stride 16) takes the frames one by one. Channel 0 is in the lowest bit; in its first
release, which 1xgpt uses, in the highest one. Only that release has no adaptive norms in its decoder,
so the file shows which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.config.base import Section
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import CENTRED, DiscreteEncoder, frame_spec
from latentcache.encoders.tokenizers.open_magvit2_model import OpenMagvit2, Shape
from latentcache.encoders.tokenizers.per_frame import PerFrameEncoder
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint
from latentcache.errors import ConfigError

MODEL_CLASS = "Open-MAGVIT2"
LEVELS = CENTRED
_PARTS = ("encoder.", "decoder.")
_AVERAGED = "model_ema."


class Config(Section):
    """The encoder `open_magvit2`. It computes in float32."""

    kind: Literal["open_magvit2"]
    checkpoint: str = Field(
        min_length=1,
        description="Path of the .ckpt file, such as video_128_262144.ckpt. Its tensors show whether it is "
        "of videos or of images.",
    )
    weights: Literal["averaged", "last"] = Field(
        description="averaged: the moving average that its evaluation uses; last: the weights of the last "
        "step. A file made for inference may hold only one of them.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the shapes of the tensors."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    with file.architecture_of(MODEL_CLASS):
        shape = Shape.of(_select(config, trainer_checkpoint.read(file, only_shapes=True)))
        ids = IdSpec(codebook_size=1 << shape.bits, bit_order=shape.bit_order)
    if shape.images:
        return frame_spec(config.kind, MODEL_CLASS, shape.stride[1], ids, file.sha256())
    return LatentSpec(
        encoder=config.kind,
        model_class=MODEL_CLASS,
        channels=1,
        stride=shape.stride,
        frame_rule=FrameRule(multiple=shape.stride[0], remainders=(1 % shape.stride[0],)),
        stored="ids",
        dtype=ids.dtype,
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
        "weights": config.weights,
    }


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiscreteEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    loaded = _select(config, trainer_checkpoint.read(file))
    with file.architecture_of(MODEL_CLASS), torch.device("meta"):
        network = OpenMagvit2(Shape.of(loaded))
    trainer_checkpoint.load_into(network, loaded)
    kind = PerFrameEncoder if spec.frame_independent else DiscreteEncoder
    return kind(network.to(device), spec, device, LEVELS)


def _select(config: Config, loaded: TrainerCheckpoint) -> TrainerCheckpoint:
    """Return encoder and decoder with the last or the averaged weights. Raises ConfigError."""
    last = loaded.select(*_PARTS)
    if config.weights == "last" or not last.tensors:
        return last
    # Tensors of the average have the model's names without the dots.
    averages = {
        name: loaded.tensors.get(_AVERAGED + name.replace(".", "")) for name in last.tensors
    }
    absent = [name for name, tensor in averages.items() if tensor is None]
    if absent:
        raise ConfigError(
            f"encoder.weights is averaged, but {loaded.file.path.name} holds no average of "
            f"{len(absent)} tensors, such as {absent[0]}. Set encoder.weights to last."
        )
    tensors = {name: tensor for name, tensor in averages.items() if tensor is not None}
    return replace(loaded, tensors=tensors)
