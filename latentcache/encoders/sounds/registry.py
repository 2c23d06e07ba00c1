"""The encoders of sound by name: settings, descriptions and encoders. Each is imported when it is named."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from latentcache.config.files import validate
from latentcache.encoders.sounds.encoder import BaseEncoder
from latentcache.encoders.sounds.protocol import SoundArray, SoundEncoder
from latentcache.errors import ConfigError, did_you_mean

_MODULES: Mapping[str, str] = {
    "encodec": "latentcache.encoders.sounds.encodec",
    "ltx2": "latentcache.encoders.sounds.ltx2",
    "wav2vec2": "latentcache.encoders.sounds.wav2vec2",
}
#: The encoders that come with this package.
SOUNDS = tuple(_MODULES)


class SoundDescription(NamedTuple):
    """What an encoder will give, known without its weights in memory."""

    arrays: Mapping[str, SoundArray]
    recipe: Mapping[str, object]


def describe_sound_encoder(
    settings: Mapping[str, Any], max_s: float, where: str = "encoder"
) -> SoundDescription:
    """Read configs and the digests of all files. Raises ConfigError and EncoderError.

    max_s: the longest span of a clip. where: names the settings in messages.
    """
    encoder = _unloaded(settings, max_s, where)
    return SoundDescription(encoder.arrays, encoder.recipe())


def build_sound_encoder(
    settings: Mapping[str, Any], max_s: float, device: torch.device
) -> SoundEncoder:
    """Load an encoder onto a device. Raises ConfigError and EncoderError."""
    return _unloaded(settings, max_s, "encoder").load(device)


def _unloaded(settings: Mapping[str, Any], max_s: float, where: str) -> BaseEncoder[Any]:
    family = settings.get("family")
    if not isinstance(family, str) or family not in _MODULES:
        raise ConfigError(
            f"{where}.family: unknown encoder of sound {family!r}.{did_you_mean(str(family), SOUNDS)} "
            f"Encoders: {', '.join(SOUNDS)}"
        )
    module = importlib.import_module(_MODULES[family])
    encoder: BaseEncoder[Any] = module.Encoder(validate(module.Settings, settings, where), max_s)
    return encoder
