"""Small whole caches, plan and all, of random latents: planned and committed as a run does, undecoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latentcache.config.files import load_config
from latentcache.core.records import ClipResult, ShardId
from latentcache.format.commit import commit_shard
from latentcache.format.schemas import PROBE_SCHEMA, SOURCE_SCHEMA
from latentcache.format.shards import get_format
from latentcache.format.snapshot import build_index, publish
from latentcache.planning.create import open_or_new, take_step
from latentcache.planning.grow import add_plan
from latentcache.planning.plan import make_plan
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import grow_cache
from latentcache.planning.recipe import resolve_encoder
from latentcache.planning.step import Step
from tests.tools.caches import make_config
from tests.tools.synthetic import random_sample

#: Clips that are recorded as failed, by the order in which they are committed.
FAILED = {2}


def planned_from(config_path: Path) -> PlannedCache:
    """Plan the cache of a configuration, as precompute does."""
    return grow_cache(load_config(str(config_path)))


def plan_cache(
    folder: Path, url: str, *, score: pa.DataType | None = None, **cache: Any
) -> PlannedCache:
    """Plan a cache of 7 videos and 2 images, 1 source that is rejected, and a kept column with NaN.

    score: the column's type, if its numbers are to have another one than float64.
    """
    config = load_config(str(make_config(folder, folder, url, cache=cache)), [])
    spec, identity = resolve_encoder(config)
    planned = open_or_new(config, spec, identity)
    rows = [_source(n) for n in range(10)]
    schema = pa.schema([*SOURCE_SCHEMA, *PROBE_SCHEMA, pa.field("score", pa.float64())])
    sources = pa.Table.from_pylist(rows, schema=schema)
    if score is not None:
        sources = sources.set_column(len(schema) - 1, "score", sources["score"].cast(score))
    plan = make_plan(sources, config.clips, spec, shard_clips=config.cache.shard_clips)
    step = Step(kind="plan")
    add_plan(step, plan, sources.append_column("stamp", pa.nulls(10, pa.string())))
    taken = take_step(planned, step)
    assert taken is not None
    return taken


def fill_cache(prepared: PlannedCache, *, published: bool = True, seed: int = 0) -> None:
    """Commit every shard of a planned cache, and publish the snapshot."""
    rng = np.random.default_rng(seed)
    shard_format, number = get_format(prepared.manifest.format), 0
    for place in prepared.missing_shards():
        shard, layout = prepared.plan.shard(place), prepared.manifest.layouts()[place.bucket]
        rows, results = [], []
        for _ in shard.clips:
            failed = number in FAILED
            rows.append(None if failed else random_sample(layout, rng))
            results.append(ClipResult(reason="corrupt") if failed else ClipResult(start_s=0.0))
            number += 1
        commit_shard(
            prepared.storage,
            shard_format,
            layout,
            shard,
            rows,
            results,
            prepared.manifest.fingerprint,
        )
    if published:
        publish(prepared.storage, build_index(prepared.storage, prepared.manifest))


def make_cache(folder: Path, name: str = "cache", **cache: Any) -> PlannedCache:
    """Plan and fill a cache in a folder."""
    prepared = plan_cache(folder, str(folder / name), **cache)
    fill_cache(prepared)
    return prepared


def _source(number: int) -> dict[str, Any]:
    image = number in (3, 6)
    return {
        "name": f"v{number}",
        "url": f"/nowhere/v{number}.mp4",
        "kind": "image" if image else "video",
        "caption": None if number == 4 else f"caption {number}",
        "frames": 1 if image else 5,
        "duration_s": 0.2,
        "fps": None if image else 25.0,
        "height": 64,
        "width": 96,
        "identity": f"id{number}",
        "reason": "unreadable" if number == 9 else None,
        "score": float("nan") if number == 5 else number / 10,
    }


def commit_rows(prepared: PlannedCache, shard: ShardId, rows: list[Any]) -> None:
    """Commit these values as the clips of a planned shard."""
    manifest = prepared.manifest
    commit_shard(
        prepared.storage,
        get_format(manifest.format),
        manifest.layouts()[shard.bucket],
        prepared.plan.shard(shard),
        rows,
        [ClipResult()] * len(rows),
        manifest.fingerprint,
    )
