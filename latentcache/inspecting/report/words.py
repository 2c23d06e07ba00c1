"""A cache's recipe in words, for people who did not write its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latentcache.core.spec import LatentSpec
from latentcache.format.manifest import Manifest
from latentcache.storage.urls import redact


def recipe_in_words(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (what, words), in the order in which the work was done."""
    recipe, spec = manifest.recipe, manifest.spec
    corpus = manifest.config.get("corpus", {})
    if "source" in corpus:
        yield "corpus", redact(str(corpus["source"]))
    if "clips" in recipe:
        yield "clips", _clips(recipe["clips"])
        yield "pixels", _pixels(recipe, spec)
    yield "encoder", _encoder(spec, recipe.get("encoder", {}))
    yield "latents", _latents(spec)
    yield "normaliser", _normaliser(spec)
    yield "storage", _storage(manifest)
    yield "fingerprint", manifest.fingerprint
    yield (
        "made by",
        ", ".join([manifest.created_by, *(f"{k} {v}" for k, v in spec.packages.items())]),
    )


def _clips(clips: Mapping[str, Any]) -> str:
    frames = clips["frames"]
    longest = " or ".join(map(str, frames)) if isinstance(frames, list) else str(frames)
    rate = (
        f"sampled at {clips['fps']:g} per second" if clips["fps"] else "every frame of the source"
    )
    parts = [f"{longest} frames, {rate}", f"select {clips['select']}"]
    if clips["stride"]:
        parts.append(f"one every {clips['stride']} sampled frames")
    if clips["size"]:
        parts.append("{}x{} pixels".format(*clips["size"]))
    if buckets := clips["buckets"]:
        parts.append(_buckets(buckets))
    if clips["too_short"] == "shorten":
        parts.append("shorter if the source is")
    return "; ".join(parts)


def _buckets(buckets: Mapping[str, Any]) -> str:
    if sizes := buckets.get("sizes"):
        return "pixels: " + ", ".join("{}x{}".format(*size) for size in sizes)
    ratios = ", ".join(map(str, buckets["aspect_ratios"] or ["each source's own ratio"]))
    return f"about {buckets['area']} pixels in multiples of {buckets['multiple']}, at {ratios}"


def _pixels(recipe: Mapping[str, Any], spec: LatentSpec) -> str:
    low, high = spec.pixel_range
    decoder = recipe["decoder"]
    return (
        f"decoded by {decoder['family']}, rotation and pixel shape {decoder['rotation']}; resized "
        f"({_filter(recipe)}{recipe['resize']}) and fed as RGB in [{low:g}, {high:g}], {spec.pixel_layout}"
    )


def _filter(recipe: Mapping[str, Any]) -> str:
    return "" if recipe["clips"].get("resize") else f"{recipe['clips']['interpolation']}, "


def _encoder(spec: LatentSpec, identity: Mapping[str, Any]) -> str:
    parts = [f"{spec.model_class} (kind {spec.encoder})", f"computed in {spec.compute_dtype}"]
    if spec.weights_sha256:
        parts.append(f"weights {spec.weights_sha256}")
    if tiling := identity.get("tiling"):
        parts.append(f"in tiles of {tiling.get('tile')}, overlapping by {tiling.get('overlap')}")
    parts.append(f"{spec.exactness.replace('_', ' ')}")
    return ", ".join(parts)


def _latents(spec: LatentSpec) -> str:
    stride = "x".join(map(str, spec.stride))
    what = f"ids of {spec.ids.codebook_size:,} codes" if spec.ids else f"{spec.channels} channels"
    return (
        f"{what}, stride {stride} in T x H x W, frames per clip: {spec.frame_rule.describe()}; stores "
        f"{spec.stored} as {spec.dtype}"
    )


def _normaliser(spec: LatentSpec) -> str:
    normaliser = spec.normaliser
    if normaliser.kind == "none":
        return "none: a trainer takes the latents as they are"
    if normaliser.kind in ("scale", "shift_scale"):
        return f"(z - {normaliser.shift[0]:g}) x {normaliser.scale[0]:g}, not applied to what is stored"
    return "(z - shift) x scale with values per channel, not applied to what is stored"


def _storage(manifest: Manifest) -> str:
    codec, level = manifest.compression["codec"], manifest.compression["level"]
    packed = "uncompressed" if codec == "none" else f"{codec} of level {level}"
    chunks = manifest.chunk_frames and f", {manifest.chunk_frames} latent frames per chunk"
    return f"{manifest.format}, {packed}, {manifest.shard_clips} clips per shard{chunks or ''}"
