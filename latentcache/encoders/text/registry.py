"""The families by name: settings, descriptions and encoders. Each is imported when it is named."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from latentcache.config.files import validate
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.joint import JointEncoder, JointFamily
from latentcache.encoders.text.protocol import TextArray, TextEncoder
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ConfigError, did_you_mean

_PACKAGE = "latentcache.encoders.text"
_MODULES: Mapping[str, str] = {
    "cogvideox": "cogvideox",
    "cosmos": "cosmos",
    "cosmos25": "cosmos25",
    "flux": "flux",
    "flux2": "flux2",
    "hunyuan_video": "hunyuan_video",
    "hunyuan_video15": "hunyuan_video15",
    "kandinsky5": "kandinsky5",
    "ltx": "ltx",
    "ltx2": "ltx2",
    "mochi": "mochi",
    "qwen_image": "qwen_image",
    "sd3": "sd3",
    "sdxl": "sdxl",
    "transformers": "explicit",
    "wan": "wan",
}
#: The families that come with this package.
FAMILIES = tuple(_MODULES)
#: Those whose text is encoded with images: their modules, and the classes in these.
_JOINT: Mapping[str, tuple[str, str]] = {
    "hunyuan_video_i2v": ("hunyuan_video_i2v", "Encoder"),
    "qwen_image_edit": ("qwen_image_edit", "Encoder"),
    "qwen_image_edit_plus": ("qwen_image_edit", "PlusEncoder"),
}
JOINT_FAMILIES = tuple(_JOINT)


class TextDescription(NamedTuple):
    """What a text encoder will give, known without its weights in memory."""

    arrays: Mapping[str, TextArray]
    recipe: Mapping[str, object]


def text_settings(raw: Mapping[str, Any], where: str = "text") -> TextSettings:
    """Return a family's validated settings. Raises ConfigError; `where` names them in messages."""
    family = raw.get("family")
    if family in _JOINT:
        raise ConfigError(f"{where}.family: {family} encodes texts with images: use kind: joint")
    if not isinstance(family, str) or family not in _MODULES:
        raise ConfigError(
            f"{where}.family: unknown family {family!r}.{did_you_mean(str(family), FAMILIES)} "
            f"Families: {', '.join(FAMILIES)}; or name a module of your own, such as my_package.my_text."
        )
    settings: TextSettings = validate(family_module(str(family)).Settings, raw, where)
    return settings


def describe_text_encoder(settings: Mapping[str, Any]) -> TextDescription:
    """Read configs, the tokenizer and the digests of all files. Raises ConfigError and EncoderError."""
    encoder = _unloaded(settings)
    return TextDescription(encoder.arrays, encoder.recipe())


def build_text_encoder(settings: Mapping[str, Any], device: torch.device) -> TextEncoder:
    """Load a text encoder onto a device. Raises ConfigError and EncoderError."""
    return _unloaded(settings).load(device)


def family_module(family: str) -> Any:
    """Return the module of a family: it has `Settings` and `Encoder`."""
    return importlib.import_module(f"{_PACKAGE}.{_MODULES[family]}")


def _unloaded(settings: Mapping[str, Any]) -> Family[Any]:
    checked = text_settings(settings)
    encoder: Family[Any] = family_module(checked.family).Encoder(checked)
    return encoder


def describe_joint_encoder(settings: Mapping[str, Any], num_images: int) -> TextDescription:
    """Describe an encoder of texts with images, as `describe_text_encoder` does."""
    encoder = _unloaded_joint(settings)
    encoder.check_images(num_images)
    encoder.check_room(num_images)
    return TextDescription(encoder.arrays, encoder.recipe())


def build_joint_encoder(settings: Mapping[str, Any], device: torch.device) -> JointEncoder:
    """Load an encoder of texts with images onto a device. Raises ConfigError and EncoderError."""
    return _unloaded_joint(settings).load(device)


def _unloaded_joint(settings: Mapping[str, Any], where: str = "joint") -> JointFamily[Any]:
    family = settings.get("family")
    if not isinstance(family, str) or family not in _JOINT:
        raise ConfigError(
            f"{where}.family: unknown family {family!r}.{did_you_mean(str(family), JOINT_FAMILIES)} "
            f"Families of texts with images: {', '.join(JOINT_FAMILIES)}"
        )
    name, encoder = _JOINT[family]
    module = importlib.import_module(f"{_PACKAGE}.{name}")
    made: JointFamily[Any] = getattr(module, encoder)(validate(module.Settings, settings, where))
    return made
