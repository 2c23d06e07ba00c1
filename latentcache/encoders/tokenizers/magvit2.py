"""MAGVIT-v2 as in the package magvit2-pytorch: ids [t, h, w], channel 0 in the highest bit.

Trainers of this package feed it pixels in [0, 1]. It is more than causal. In version 0.5.1 a
`compress_time` layer halves time with windows that end before the pair of frames that they stand for.
So with a stride k in time, id frame t sees pixel frames only up to k(t - 1) + 1, not kt. The first id
frame sees none, and the last k - 1 frames of a clip reach no id. Its decoder was trained with that. A
single frame would give the same ids whatever it shows, and is refused.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.config.base import Options, Section
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.encoders.tokenizers.discrete import DiscreteEncoder
from latentcache.errors import ConfigError, EncoderError

MODEL_CLASS = "magvit2-pytorch VideoTokenizer"
LEVELS = torch.arange(256, dtype=torch.float32) / 255.0
_PACKAGES = ("magvit2-pytorch", "vector-quantize-pytorch")
#: Settings for training only. The first would download weights; the second would still be built.
_NO_TRAINING = {"perceptual_loss_weight": 0.0, "use_gan": False}
_TRAINING_PARTS = ("discr.", "multiscale_discrs.", "vgg.")


class Config(Section):
    """The encoder `magvit2`. It computes in float32."""

    kind: Literal["magvit2"]
    checkpoint: str = Field(
        min_length=1, description="Path of a .pt file that VideoTokenizer.save wrote."
    )
    settings: Options = Field(
        description="The arguments that the VideoTokenizer was made with, among them image_size, "
        "codebook_size and layers. The file holds them as a pickle, which is not opened."
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:  # noqa: ARG001 - ids have a type of their own
    """Return the spec from the settings; the weights are not loaded."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    codes, side = _required(config, "codebook_size"), _required(config, "image_size")
    stride = _stride(config)
    ids = IdSpec(codebook_size=codes, bit_order="msb_first")
    return LatentSpec(
        encoder=config.kind,
        model_class=MODEL_CLASS,
        channels=1,
        stride=stride,
        frame_rule=_frame_rule(stride[0]),
        stored="ids",
        dtype=ids.dtype,
        pixel_range=(0.0, 1.0),
        exactness="prefix_exact",
        weights_sha256=file.sha256(),
        ids=ids,
        fixed_size=(side, side),
        packages=_packages(),
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `revision` counts changes of the arithmetic."""
    return {
        "kind": config.kind,
        "model_class": MODEL_CLASS,
        "revision": 1,
        "weights_sha256": locate(config.checkpoint, "encoder.checkpoint").sha256(),
        "settings": dict(config.settings),
        "packages": dict(_packages()),
    }


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiscreteEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    file = locate(config.checkpoint, "encoder.checkpoint")
    file.check_unchanged(spec)
    network = _network(config)
    loaded = trainer_checkpoint.read(file)
    wanted = {name for name in network.state_dict() if not name.startswith(_TRAINING_PARTS)}
    found = {name for name in loaded.tensors if not name.startswith(_TRAINING_PARTS)}
    if wanted != found:
        raise EncoderError(
            f"encoder.settings: they make a VideoTokenizer of {len(wanted)} tensors, but {file.path} "
            f"has {len(found)}; one of the two has no {min(wanted ^ found)}. Give the settings that it "
            "was trained with."
        )
    try:
        network.load_state_dict({name: loaded.tensors[name] for name in found}, strict=False)
    except RuntimeError as error:
        raise EncoderError(
            f"encoder.settings: they do not fit {file.path}: {' '.join(str(error).split())[:300]}"
        ) from error
    network.eval().requires_grad_(False)
    return DiscreteEncoder(Magvit2(network.to(device)), spec, device, LEVELS)


def _required(config: Config, name: str) -> int:
    value = config.settings.get(name)
    if not isinstance(value, int) or config.settings.get("num_codebooks", 1) != 1:
        raise ConfigError(
            f"encoder.settings.{name}: required, a whole number, with one codebook; got {value!r}. "
            "Only lookup-free quantisation is supported, not the package's FSQ."
        )
    return value


def _stride(config: Config) -> tuple[int, int, int]:
    """Count the layers that halve time, and height and width."""
    layers = config.settings.get("layers", ())
    try:
        names = [layer if isinstance(layer, str) else str(layer[0]) for layer in layers]
    except (TypeError, LookupError):
        raise ConfigError(
            "encoder.settings.layers: should be a list of names and of [name, width]; got "
            f"{repr(layers)[:100]}"
        ) from None
    if any(name.startswith("cond_") for name in names):
        raise ConfigError(
            "encoder.settings.layers: conditioned layers need a condition for each clip"
        )
    spatial = 1 << names.count("compress_space")
    return (1 << names.count("compress_time"), spatial, spatial)


def _frame_rule(stride: int) -> FrameRule:
    if stride == 1:
        return FrameRule()
    return FrameRule(multiple=stride, remainders=(1,), minimum=1 + stride)


def _packages() -> Mapping[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _network(config: Config) -> Any:
    from magvit2_pytorch import VideoTokenizer

    layers = tuple(
        layer if isinstance(layer, str) else tuple(layer)
        for layer in config.settings.get("layers", ())
    )
    settings = {**config.settings, **_NO_TRAINING, **({"layers": layers} if layers else {})}
    try:
        return VideoTokenizer(**settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"encoder.settings: VideoTokenizer refuses them: {error}") from error


class Magvit2:
    """A `discrete.Tokenizer` around the package's own."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, t, h, w]."""
        ids: torch.Tensor = self._network(values_BCTHW, return_codes=True)
        return ids

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values [B, 3, T, H, W]."""
        values: torch.Tensor = self._network.decode_from_code_indices(ids)
        return values
