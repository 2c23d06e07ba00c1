"""From a text field's settings to its encoder: a family of this package, or a plug-in's dotted module.

A plug-in is a module, or `my_package.my_text:name`, that has `build(settings, device) -> TextEncoder`. If
it has `describe(settings) -> (arrays, recipe)`, too, a field is planned without loading the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from latentcache.encoders.text.protocol import TextArray, TextEncoder
from latentcache.errors import ConfigError, EncoderError, LatentCacheError

Settings = Mapping[str, Any]
#: What `describe` returns: the arrays by name, and the recipe.
Description = tuple[Mapping[str, TextArray], Mapping[str, Any]]


def build(settings: Settings, device: torch.device) -> TextEncoder:
    """Load the encoder. Raises ConfigError, EncoderError."""
    owner, build_it, _ = _find(str(settings["family"]))
    encoder = build_it(settings, device)
    if not hasattr(encoder, "arrays") or not hasattr(encoder, "encode"):
        raise EncoderError(f"{owner}: build returned {type(encoder).__name__}, no text encoder")
    return encoder  # type: ignore[no-any-return]


def describe(settings: Settings) -> Description:
    """Return the arrays and the recipe, loading the model only where the encoder cannot say without."""
    family, _, describe_it = _find(str(settings["family"]))
    try:
        if describe_it is not None:
            arrays, recipe = describe_it(settings)
        else:
            encoder = build(settings, torch.device("cpu"))
            arrays, recipe = encoder.arrays, encoder.recipe()
    except LatentCacheError:
        raise
    except Exception as error:  # a plug-in may raise anything, and other fields go on
        raise EncoderError(
            f"{family} cannot be described: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(arrays, Mapping) or not all(
        isinstance(a, TextArray) for a in arrays.values()
    ):
        raise EncoderError(f"{family}: its arrays are no TextArrays by name: {arrays!r}")
    return arrays, recipe


def _find(family: str) -> tuple[str, Any, Any]:
    """Return the name of an encoder, its `build`, and its `describe` if it has one."""
    path, colon, attribute = family.partition(":")
    if "." not in path and not colon:
        families = importlib.import_module("latentcache.encoders.text")
        return family, families.build_text_encoder, families.describe_text_encoder
    if not all(map(str.isidentifier, path.split("."))):
        raise ConfigError(
            f"family {family!r} is neither a family nor a module's name, such as my_package.my_text."
        )
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise EncoderError(f"family {family!r} lacks a package of its own: {error}") from error
        raise ConfigError(
            f"family {family!r}: there is no module {path!r} to import. Install the package that "
            "contains it."
        ) from None
    if colon:
        owner = getattr(owner, attribute, None)
    if not callable(getattr(owner, "build", None)):
        raise ConfigError(
            f"family {family!r} is no text encoder: it has no function build(settings, device)."
        )
    return family, owner.build, getattr(owner, "describe", None)
