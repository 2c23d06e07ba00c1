"""The caches of a loader together: opened, and which snapshots of them it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.source import Source


def open_all(
    caches: Cache | str | Path | Sequence[Cache | str | Path],
    storage_options: Mapping[str, Any] | None,
) -> list[Cache]:
    """Open one cache or several, unless they are open. Raises ConfigError."""
    if isinstance(caches, Cache | str | Path):
        caches = [caches]
    if not (
        isinstance(caches, Sequence)
        and caches
        and all(isinstance(c, Cache | str | Path) for c in caches)
    ):
        raise ConfigError(f"{caches!r} is no cache: give a URL, an open cache, or a list of them")
    return [c if isinstance(c, Cache) else open_cache(str(c), storage_options) for c in caches]


def choose(sources: Sequence[Source], snapshots: Sequence[Mapping[str, Any]]) -> None:
    """Take a snapshot of each cache, and its fields; see `Source.choose`."""
    for source, snapshot in zip(sources, snapshots, strict=True):
        source.choose(snapshot)


def newest(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the snapshots that are published now, as small JSON values; see `Source.newest`."""
    return [source.newest() for source in sources]


def take_newest(sources: Sequence[Source], world_size: int) -> None:
    """Take the newest snapshots; of several ranks, those that rank 0 sees: then a collective call."""
    if world_size == 1:
        choose(sources, newest(sources))
    elif not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            f"follow: each of {world_size} ranks would see another snapshot and take a different "
            "order. Initialise torch.distributed before the loader is made; or leave follow "
            "out, and call set_epoch(epoch, snapshots) on all ranks with one rank's newest()."
        )
    else:
        snapshots = newest(sources) if dist.get_rank() == 0 else [{}] * len(sources)
        dist.broadcast_object_list(snapshots, src=0)
        choose(sources, snapshots)
