"""Video autoencoders of diffusers: see `video_classes` for which, and `encoder` for how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders.diffusers import models
from latentcache.encoders.diffusers.encoder import DiffusersEncoder
from latentcache.encoders.diffusers.video_classes import VIDEO_CLASSES


class Config(models.ModelSection):
    """The encoder `diffusers_video`."""

    kind: Literal["diffusers_video"]


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
    return models.locate_model(config, config.kind, VIDEO_CLASSES)
