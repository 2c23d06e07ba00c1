"""What a recipe says of a cache whose decoded clips are the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentcache.config.sections import Config, CorpusConfig
from latentcache.corpus.cached import read_parent
from latentcache.encoders.stored import resolve_stored
from latentcache.errors import ConfigError
from latentcache.format.manifest import Manifest, Provenance, recipe_difference

#: How to allow a parent's encoder that is a module of its maker's own.
ALLOW = "name it yourself, as corpus.decoder.kind={kind}"
#: What two encoders of the same latents may differ in: how they compute, and what of it is stored.
_COMPUTING = ("dtype", "packages", "tiling", "store")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A cache that is decoded. recipe: what of it determines the new latents."""

    manifest: Manifest
    recipe: Mapping[str, Any]

    def provenance(self, encoder_identity: Mapping[str, Any]) -> Provenance:
        """Return what encoding its clips with an encoder is: `roundtrip` with its own, else `transcode`."""
        own, other = (
            {name: value for name, value in identity.items() if name not in _COMPUTING}
            for identity in (self.manifest.recipe["encoder"], encoder_identity)
        )
        kind = "transcode" if recipe_difference(own, other) else "roundtrip"
        return Provenance(kind=kind, parent=self.manifest.fingerprint)  # type: ignore[arg-type]


def describe_parent(config: CorpusConfig) -> Decoded:
    """Return what is decoded; the encoder is found and compared, and not loaded.

    Raises CacheError, ConfigError, RecipeMismatchError, StorageError.
    """
    manifest = read_parent(config)
    module, encoder = resolve_stored(manifest, config.decoder, ALLOW)
    weights_of = getattr(module, "decoder_identity", None)
    return Decoded(
        manifest=manifest,
        recipe={
            "family": "latentcache",
            "parent": manifest.fingerprint,
            "encoder": dict(module.identity(encoder)),
            "weights": dict(weights_of(encoder)) if weights_of else {},
            "values": "float32, clamped to [-1, 1]",
        },
    )


def check_settings(config: Config) -> None:
    """Raise ConfigError for settings that mean nothing where no source has pixels of its own."""
    clips = config.clips
    if clips.resize is not None:
        raise ConfigError(
            "clips.resize repeats another program's arithmetic on 8-bit pixels, and a cache's clips "
            "are decoded to floats. Remove it, and the preset that stands for it; clips.interpolation "
            "names the filter"
        )
    if clips.sampling != "nearest":
        raise ConfigError(
            f"clips.sampling: {clips.sampling} counts the frames of a file as another program does, and "
            "the sources are a cache's clips. Remove it, and the preset that stands for it"
        )
    if config.quality.min_psnr is not None:
        raise ConfigError(
            "quality.min_psnr compares decoded clips with the pixels of their sources, and the sources are "
            "a cache's latents. Remove it; the column drift says how far each clip has moved."
        )
