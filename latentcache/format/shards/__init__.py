"""Shard formats: latents in, one storage object out, and back. One module a format."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, cast, get_args

from latentcache.core.records import ShardFormat
from latentcache.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from latentcache.format.shards.protocol import Format

NAMES: tuple[str, ...] = get_args(ShardFormat)


@functools.cache
def get_format(name: str) -> Format:
    """Return the format of that name; the same object each time. Raises ConfigError."""
    if name not in NAMES:
        raise ConfigError(
            f"unknown shard format {name!r}.{did_you_mean(name, NAMES)} Formats: {', '.join(NAMES)}"
        )
    module = importlib.import_module(f"latentcache.format.shards.{name}")
    return cast("Format", module.build())
