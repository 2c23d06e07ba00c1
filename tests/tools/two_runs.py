"""Two runs on one cache: how both are prepared."""

from __future__ import annotations

from pathlib import Path

from latentcache.planning.planned import PlannedCache
from tests.tools.caches import make_config
from tests.tools.planned import planned_from


def config_for(folder: Path, corpus: Path, cache: Path, shard_format: str = "zarr") -> Path:
    return make_config(
        folder, corpus, str(cache), cache={"url": str(cache), "format": shard_format}
    )


def prepared_in(folder: Path, corpus: Path, name: str = "cache") -> PlannedCache:
    return planned_from(config_for(folder, corpus, folder / name))


def planned_keys(prepared: PlannedCache) -> list[str]:
    """The keys of all planned clips, each as often as it is planned."""
    return [
        key
        for bucket in prepared.manifest.buckets
        for table in prepared.plan.plans(bucket.name)
        for key in table["key"].to_pylist()
    ]
