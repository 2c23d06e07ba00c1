"""Image autoencoders of diffusers, for images and for video frame by frame: see `image_classes`.

Each frame of a clip is encoded on its own, and equals the model's own call on that frame bit for bit. In a
batch, the clips' frames of one number are encoded at once: see `encoders.batching`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.core.spec import LatentSpec
from latentcache.encoders.diffusers import models
from latentcache.encoders.diffusers.encoder import DiffusersEncoder
from latentcache.encoders.diffusers.image_classes import IMAGE_CLASSES


class Config(models.ModelSection):
    """The encoder `diffusers_image`."""

    kind: Literal["diffusers_image"]
    pixel_range: tuple[Literal[-1, 0], Literal[1]] | None = Field(
        default=None,
        description="The pixel range that the model takes, [0, 1] or [-1, 1]; only for VQModel, whose "
        "models differ.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec from the model's config.json and the hash of its weights."""
    return models.describe(_locate(config), config, config.kind, dtype)


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe."""
    return models.identity(_locate(config), config, config.kind)


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiffusersEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError."""
    return models.build(_locate(config), config, spec, device)


def _locate(config: Config) -> models.Located:
    low_high = config.pixel_range
    pixel_range = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return models.locate_model(config, config.kind, IMAGE_CLASSES, pixel_range)
