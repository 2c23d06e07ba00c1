"""The towers by name: settings, descriptions and encoders. Each is imported when it is named."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from latentcache.config.files import validate
from latentcache.encoders.towers.protocol import ImageTower
from latentcache.encoders.towers.tower import Tower, TowerSettings
from latentcache.errors import ConfigError, did_you_mean

_MODULES: Mapping[str, str] = {
    "siglip": "latentcache.encoders.towers.siglip",
    "wan_clip": "latentcache.encoders.towers.clip_vision",
}
#: The towers that come with this package.
TOWERS = tuple(_MODULES)


class TowerDescription(NamedTuple):
    """What a tower will give, known without its weights in memory."""

    arrays: Mapping[str, tuple[int, ...]]
    recipe: Mapping[str, object]


def tower_settings(raw: Mapping[str, Any], where: str = "image") -> TowerSettings:
    """Return a tower's validated settings. Raises ConfigError; `where` names them in messages."""
    family = raw.get("family")
    if not isinstance(family, str) or family not in _MODULES:
        raise ConfigError(
            f"{where}.family: unknown tower {family!r}.{did_you_mean(str(family), TOWERS)} "
            f"Towers: {', '.join(TOWERS)}"
        )
    settings: TowerSettings = validate(_module(str(family)).Settings, raw, where)
    return settings


def describe_image_tower(settings: Mapping[str, Any], where: str = "image") -> TowerDescription:
    """Read configs, the processor and the digests of all files. Raises ConfigError and EncoderError.

    where: names the settings in messages.
    """
    tower = _unloaded(settings, where)
    return TowerDescription(tower.arrays, tower.recipe())


def build_image_tower(settings: Mapping[str, Any], device: torch.device) -> ImageTower:
    """Load a tower onto a device. Raises ConfigError and EncoderError."""
    return _unloaded(settings).load(device)


def _module(family: str) -> Any:
    return importlib.import_module(_MODULES[family])


def _unloaded(settings: Mapping[str, Any], where: str = "image") -> Tower[Any]:
    checked = tower_settings(settings, where)
    tower: Tower[Any] = _module(checked.family).Encoder(checked)
    return tower
