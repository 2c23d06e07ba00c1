"""The recipe: everything that determines the values of latents, and the cache.json that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.core.spec import LatentSpec
from latentcache.errors import (
    ConfigError,
)
from latentcache.format.manifest import (
    Manifest,
    Provenance,
    fingerprint,
)
from latentcache.planning.decoded import Decoded, check_settings, describe_parent
from latentcache.storage.cache_urls import is_cache_url

RECIPE_VERSION = 1

DEFAULT_DTYPE = "bfloat16"
_FFMPEG = {
    "family": "ffmpeg",
    "frames": "presentation order",
    "rotation": "applied",
    "pixel_aspect": "applied",
}


def resolve_encoder(config: Config) -> tuple[LatentSpec, Mapping[str, Any]]:
    """Return the encoder's spec and its part of the recipe, without loading it. Raises ConfigError."""
    module, encoder_config = encoders.resolve(config.encoder)
    spec = module.describe(encoder_config, dtype=config.cache.dtype or DEFAULT_DTYPE)
    if spec.ids is not None and config.cache.dtype is not None:
        raise ConfigError(
            f"cache.dtype is {config.cache.dtype}, and {spec.model_class} gives ids, which are stored as "
            f"{spec.dtype}: remove cache.dtype"
        )
    packages = {**spec.packages, "torch": version("torch")}
    return replace(spec, packages=packages), module.identity(encoder_config)


def make_recipe(
    config: Config,
    spec: LatentSpec,
    encoder_identity: Mapping[str, Any],
    decoded: Decoded | None = None,
) -> dict[str, Any]:
    """Return everything that determines the latents' values but the corpus.

    decoded: the cache whose clips the corpus is.
    """
    resize = config.clips.resize
    return {
        "version": RECIPE_VERSION,
        "clips": config.clips.model_dump(mode="json"),
        "decoder": dict(decoded.recipe if decoded else _FFMPEG),
        "resize": resize.in_words() if resize else "antialiased, cover, centre crop",
        "encoder": dict(encoder_identity),
        "stored": spec.stored,
        "dtype": spec.dtype,
    }


def make_manifest(
    config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any]
) -> Manifest:
    """Return the cache.json of a configuration, with nothing planned yet."""
    decoded = None
    if is_cache_url(config.corpus.source):
        check_settings(config)
        decoded = describe_parent(config.corpus)
    recipe = make_recipe(config, spec, encoder_identity, decoded)
    return Manifest(
        provenance=decoded.provenance(encoder_identity) if decoded else Provenance(),
        fingerprint=fingerprint(recipe),
        recipe=recipe,
        spec=spec,
        format=config.cache.format,
        compression=config.cache.compression.model_dump(),
        shard_clips=config.cache.shard_clips_of(0, config.run.workers),
        chunk_frames=_chunk_frames(config, spec),
        config=_found_from_anywhere(config.without_secrets()),
    )


def _chunk_frames(config: Config, spec: LatentSpec) -> int | None:
    """Return the latent frames per chunk. Raises ConfigError where latents have no frames."""
    if config.cache.chunk_frames is not None and spec.ids is not None and spec.ids.scales:
        raise ConfigError(
            f"cache.chunk_frames is {config.cache.chunk_frames}, and the multi-scale ids of "
            f"{spec.model_class} have no frames: remove cache.chunk_frames"
        )
    return config.cache.chunk_frames


def _found_from_anywhere(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose encoder's files have absolute paths: `resume` may run in another folder.

    A name that is no file or folder here, such as one on the hub, stays as it is.
    """
    encoder = {
        key: str(Path(value).absolute())
        if key != "kind" and isinstance(value, str) and value and Path(value).exists()
        else value
        for key, value in config["encoder"].items()
    }
    return {**config, "encoder": encoder}
