"""What a reader expects of a cache's latents, compared with what they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, ConfigError, did_you_mean
from latentcache.format.manifest import Origin, Provenance


def check_expectations(url: str, spec: LatentSpec, expect: Mapping[str, Any]) -> None:
    """Raise CacheError if the spec differs from `expect`, and ConfigError for unknown fields."""
    actual = spec.to_json()
    for name in expect:
        if name not in actual:
            raise ConfigError(
                f"expect: a latent spec has no {name!r}.{did_you_mean(name, actual)} "
                f"It has: {', '.join(actual)}"
            )
    wrong = [name for name in expect if as_json(expect[name]) != as_json(actual[name])]
    if wrong:
        wanted = ", ".join(f"{name} {as_json(expect[name])}" for name in expect)
        raise CacheError(
            f"{url} does not hold the expected latents; what differs: {', '.join(wrong)}.\n"
            f"  expected: {wanted}\n"
            f"  in the cache: {', '.join(f'{name} {as_json(actual[name])}' for name in expect)} "
            f"({describe(spec)})\n"
            "A model that expects other latents would fail at its first layer or, worse, train on "
            "them. The classic case is pixels with 3 channels reaching a model that expects 16. Open "
            "the cache that was made with your model's encoder, or change `expect`."
        )


def check_provenance(url: str, provenance: Provenance, expect: dict[str, Any]) -> None:
    """Take `provenance` out of what is expected. Raises CacheError if it is another."""
    if "provenance" not in expect:
        return
    wanted, kinds = expect.pop("provenance"), get_args(Origin)
    if wanted not in kinds:
        raise ConfigError(
            f"expect: no latents come from {wanted!r}.{did_you_mean(str(wanted), kinds)} "
            f"provenance is one of: {', '.join(kinds)}"
        )
    if wanted != provenance.kind:
        parent = f", of the cache {provenance.parent[:12]}" if provenance.parent else ""
        raise CacheError(
            f"{url} does not hold the expected latents: their provenance is {provenance.kind}{parent}, and "
            f"{wanted} is expected. Latents of an encoder, of a sampler and of a round trip differ in "
            "their distribution, and a model that was made for one trains on the others without a word. "
            "Open the cache that was made that way, or change `expect`."
        )


def describe(spec: LatentSpec) -> str:
    """Return a latent spec in a few words."""
    stride = "x".join(map(str, spec.stride))
    return (
        f"{spec.model_class}, {spec.channels} channels, stride {stride} in T x H x W, "
        f"{spec.stored} in {spec.dtype}"
    )


def as_json(value: Any) -> str:
    """Return a value as JSON, to compare what is expected with what cache.json or field.json says."""
    return json.dumps(value, sort_keys=True, default=_json_value)


def _json_value(value: Any) -> Any:
    """Return a value that JSON lacks as one that it has: numbers of numpy, data types, tuples and sets."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterable) else str(value)
