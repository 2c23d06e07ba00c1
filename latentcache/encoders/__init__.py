"""Encoders: pixels to latents. One module per kind, imported when a configuration names it.

A module outside this package that exposes the same names (see `protocol.EncoderModule`) is named
by its path, `kind: my_package.my_encoder`. `kind: my_package.my_encoder:name` names an object in it
that exposes them, or a function that replaces `build`. See docs/encoder-plugins.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from latentcache.config.files import validate
from latentcache.core.machine import install_command
from latentcache.encoders.batching import BatchedModule, Batching
from latentcache.encoders.protocol import EncoderModule
from latentcache.encoders.tiled import TiledModule, Tiling
from latentcache.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Where a kind is implemented, and which package it needs beyond latentcache's own."""

    module: str
    package: str | None = None
    extra: str | None = None


_KINDS: Mapping[str, _Kind] = {
    "dct": _Kind(module="latentcache.encoders.dct"),
    "diffusers_image": _Kind(
        module="latentcache.encoders.diffusers.image", package="diffusers", extra="diffusers"
    ),
    "diffusers_video": _Kind(
        module="latentcache.encoders.diffusers.video", package="diffusers", extra="diffusers"
    ),
    "ivvae": _Kind(module="latentcache.encoders.native.ivvae"),
    "taehv": _Kind(module="latentcache.encoders.native.taehv"),
    "taesd": _Kind(module="latentcache.encoders.native.taesd"),
    "videogpt": _Kind(module="latentcache.encoders.tokenizers.videogpt"),
    "open_magvit2": _Kind(module="latentcache.encoders.tokenizers.open_magvit2"),
    "magvit2": _Kind(
        module="latentcache.encoders.tokenizers.magvit2", package="magvit2_pytorch", extra="magvit2"
    ),
    "cosmos_tokenizer": _Kind(module="latentcache.encoders.tokenizers.cosmos_tokenizer"),
    "vqgan": _Kind(module="latentcache.encoders.tokenizers.vqgan"),
    "llamagen": _Kind(module="latentcache.encoders.tokenizers.llamagen"),
    "var": _Kind(module="latentcache.encoders.tokenizers.var"),
}
#: The kinds that come with this package.
KINDS = tuple(_KINDS)
_EXPOSED = ("Config", "describe", "identity", "build")


def resolve(raw: Mapping[str, Any]) -> tuple[EncoderModule, BaseModel]:
    """Return the module and the validated configuration of the config's `encoder` section.

    Any encoder takes the keys `tiling`, which runs it over tiles (see `encoders.tiled`), and `batch`, which
    says how many clips are encoded at once (see `encoders.batching`).
    Loads no model. Raises ConfigError for an unknown kind, a missing package or a wrong key.
    """
    raw = dict(raw)
    section = raw.pop("tiling", None)
    batching = validate(Batching, {"batch": raw.pop("batch", 1)}, "encoder")
    name = raw.get("kind")
    if not isinstance(name, str):
        raise ConfigError(f"encoder.kind: required; one of: {', '.join(KINDS)}")
    module = _installed(name) if name in _KINDS else _external(name)
    config = validate(module.Config, raw, "encoder")
    if section is None:
        return (
            (module, config) if batching.batch == 1 else (BatchedModule(module, batching), config)
        )
    if batching.batch != 1:
        raise ConfigError(
            f"encoder.batch is {batching.batch}, and encoder.tiling encodes one clip at a time. Remove "
            "encoder.batch; encoder.tiling.batch says how many tiles of a clip are encoded at once."
        )
    return TiledModule(module, validate(Tiling, section, "encoder.tiling")), config


def builtin(name: str) -> EncoderModule:
    """Return the module of a kind of KINDS, whether or not its package is installed."""
    return cast(EncoderModule, importlib.import_module(_KINDS[name].module))


def _installed(name: str) -> EncoderModule:
    kind = _KINDS[name]
    if kind.package is not None and importlib.util.find_spec(kind.package) is None:
        raise ConfigError(
            f"encoder.kind {name!r} runs on the package {kind.package!r}, which is not installed. "
            f"Run: {install_command(kind.extra or name)}"
        )
    return builtin(name)


def _external(name: str) -> EncoderModule:
    path, colon, attribute = name.partition(":")
    if "." not in path and not colon:
        raise ConfigError(
            f"encoder.kind: unknown kind {name!r}.{did_you_mean(name, KINDS)} Kinds: "
            f"{', '.join(KINDS)}; or the dotted name of a module that can be imported."
        )
    encoder = _import(path)
    if colon:
        encoder = _attribute(encoder, path, attribute)
    absent = [exposed for exposed in _EXPOSED if not hasattr(encoder, exposed)]
    if absent:
        what = f"{attribute!r} of the module {path!r}" if colon else f"the module {path!r}"
        raise ConfigError(
            f"encoder.kind: {what} is not an encoder: it exposes no {', '.join(absent)}. "
            "See latentcache.encoders.protocol.EncoderModule."
        )
    return cast(EncoderModule, encoder)


def _import(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module was found but lacks a package of its own: that message says more
    except (ImportError, ValueError, TypeError) as error:
        if isinstance(error, ImportError) and error.name is not None:
            raise
        raise ConfigError(
            f"encoder.kind: {path!r} is not the name of a module: {error}. Write it as in an import "
            "statement, such as my_package.my_encoder."
        ) from None
    raise ConfigError(
        f"encoder.kind: there is no module {path!r} to import. Install the package that contains "
        f"it, or use one of: {', '.join(KINDS)}."
    )


def _attribute(module: Any, path: str, attribute: str) -> Any:
    """Return the encoder that a module holds under a name, or the module with that as its `build`."""
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(
            f"encoder.kind: the module {path!r} has no {attribute!r}."
            f"{did_you_mean(attribute, vars(module))}"
        )
    if not callable(found) or any(hasattr(found, exposed) for exposed in _EXPOSED):
        return found
    others = {exposed: getattr(module, exposed) for exposed in _EXPOSED if hasattr(module, exposed)}
    return types.SimpleNamespace(**{**others, "build": found})
