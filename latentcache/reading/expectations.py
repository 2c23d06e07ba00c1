"""What a reader expects of a cache's latents, compared with what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, ConfigError, did_you_mean


def check_expectations(url: str, spec: LatentSpec, expect: Mapping[str, Any]) -> None:
    """Raise CacheError if the spec differs from `expect`, and ConfigError for unknown fields."""
    actual = spec.to_json()
    for name in expect:
        if name not in actual:
            raise ConfigError(
                f"expect: a latent spec has no {name!r}.{did_you_mean(name, actual)} "
                f"It has: {', '.join(actual)}"
            )
    wrong = [name for name in expect if _plain(expect[name]) != _plain(actual[name])]
    if wrong:
        wanted = ", ".join(f"{name} {_plain(expect[name])}" for name in expect)
        raise CacheError(
            f"{url} does not hold the expected latents; what differs: {', '.join(wrong)}.\n"
            f"  expected: {wanted}\n"
            f"  in the cache: {', '.join(f'{name} {_plain(actual[name])}' for name in expect)} "
            f"({describe(spec)})\n"
            "A model that expects other latents would fail at its first layer or, worse, train on "
            "them. The classic case is pixels with 3 channels reaching a model that expects 16. Open "
            "the cache that was made with your model's encoder, or change `expect`."
        )


def describe(spec: LatentSpec) -> str:
    """Return a latent spec in a few words."""
    stride = "x".join(map(str, spec.stride))
    return (
        f"{spec.model_class}, {spec.channels} channels, stride {stride} in T x H x W, "
        f"{spec.stored} in {spec.dtype}"
    )


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)
