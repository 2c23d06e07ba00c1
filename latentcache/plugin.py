"""All that an encoder of one's own imports; docs/encoder-plugins.md says how they go together.

What is exported here stays; the modules it comes from may move. Importing it loads torch and pydantic, and
no storage, decoder or runner.
"""

from __future__ import annotations

from latentcache.config.base import Options, Section
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.encoders.checkpoint import Checkpoint, locate
from latentcache.encoders.checks import check_encoded, check_latents, check_pixels
from latentcache.encoders.inference import exact_kernels, to_pixels, to_values
from latentcache.encoders.protocol import Encoder, EncoderModule
from latentcache.encoders.tokenizers.discrete import (
    DiscreteEncoder,
    Tokenizer,
    check_clip,
    check_ids,
    nearest_code,
)
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint, load_into
from latentcache.encoders.tokenizers.trainer_checkpoint import read as read_trainer_checkpoint
from latentcache.errors import ConfigError, EncoderError, GeometryError, LatentCacheError

__all__ = [
    "Checkpoint",
    "ConfigError",
    "DiscreteEncoder",
    "Encoder",
    "EncoderError",
    "EncoderModule",
    "FrameRule",
    "GeometryError",
    "IdSpec",
    "LatentCacheError",
    "LatentSpec",
    "Normaliser",
    "Options",
    "Section",
    "Tokenizer",
    "TrainerCheckpoint",
    "check_clip",
    "check_encoded",
    "check_ids",
    "check_latents",
    "check_pixels",
    "exact_kernels",
    "load_into",
    "locate",
    "nearest_code",
    "read_trainer_checkpoint",
    "to_pixels",
    "to_values",
]
