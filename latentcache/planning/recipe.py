"""The recipe: everything that determines the values of latents, and the cache.json that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.core.spec import LatentSpec
from latentcache.errors import (
    ConfigError,
)
from latentcache.format.manifest import (
    BucketInfo,
    Manifest,
    fingerprint,
)
from latentcache.planning.plan import Plan

RECIPE_VERSION = 1

DEFAULT_DTYPE = "bfloat16"


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
    config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that determines the latents' values but the corpus."""
    return {
        "version": RECIPE_VERSION,
        "clips": config.clips.model_dump(mode="json"),
        "decoder": {"family": "ffmpeg", "frames": "presentation order", "rotation": "applied"},
        "resize": "antialiased, cover, centre crop",
        "encoder": dict(encoder_identity),
        "stored": spec.stored,
        "dtype": spec.dtype,
    }


def make_manifest(
    config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any], plan: Plan
) -> Manifest:
    """Return the cache.json of a plan."""
    recipe = make_recipe(config, spec, encoder_identity)
    digest = plan.digest()
    buckets = tuple(
        BucketInfo(
            name=bucket.name,
            num_clips=table.num_rows,
            num_shards=-(-table.num_rows // config.cache.shard_clips),
            shape=spec.latent_shape(bucket.frames, bucket.height, bucket.width),
            pixel_frames=tuple(
                spec.pixel_frames(t, bucket.frames)
                for t in range(-(-bucket.frames // spec.stride[0]))
            ),
        )
        for bucket, table in sorted(plan.buckets.items())
    )
    return Manifest(
        fingerprint=fingerprint(recipe, digest),
        recipe=recipe,
        plan_sha256=digest,
        spec=spec,
        format=config.cache.format,
        compression=config.cache.compression.model_dump(),
        shard_clips=config.cache.shard_clips,
        buckets=buckets,
        config=config.without_secrets(),
    )
