"""Caches whose clips are copied: what each clip is, wherever it lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import latentcache
from latentcache.core.records import PictureFacts, ShardId
from latentcache.format.manifest import read_manifest
from latentcache.format.shards import get_format
from latentcache.format.snapshot import current_index, publish
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step, write_step
from latentcache.storage.folder import Storage
from tests.tools import planned as tool
from tests.tools.caches import run_inline
from tests.tools.planned import fill_cache, make_cache, plan_cache

VIDEOS = "5x64x96"
PICTURE = [field.name for field in dataclasses.fields(PictureFacts)]


def reopened(planned: PlannedCache) -> PlannedCache:
    """The cache as it is planned now."""
    manifest = read_manifest(planned.storage)
    return PlannedCache(config=planned.config, manifest=manifest, storage=planned.storage)


def make_fragmented(folder: Path, name: str = "cache", **cache: Any) -> PlannedCache:
    """A cache with five shards of three videos: three of them are short, and two have retired rows.

    v0 has failed, v1 and v5 were encoded again, and v8 has another caption since, and a kept column more.
    """
    planned = make_cache(folder, name, **cache)
    for shard, row in [(0, 1), (1, 1)]:
        repair_cache(planned.storage, {ShardId(VIDEOS, shard): [row]})
        planned = reopened(planned)
        fill_cache(planned, seed=shard + 1)
    relabel(planned, ShardId(VIDEOS, 2))
    return reopened(planned)


def relabel(planned: PlannedCache, shard: ShardId) -> None:
    """Give a shard's clips other captions, and a kept column beside the one that they have."""
    num_rows = planned.manifest.num_rows(shard)
    rows = pa.array(range(num_rows), pa.int32())
    columns = {
        "row": rows,
        "caption": pa.array([f"new {row}" for row in range(num_rows)]),
        "score": pa.array([row + 0.5 for row in range(num_rows)]),
        "extra": pa.array(range(num_rows)),
    }
    step = Step(kind="grow", num_relabelled=num_rows, columns={shard: pa.table(columns)})
    assert write_step(planned.storage, planned.manifest, step)
    publish(planned.storage, current_index(planned.storage, read_manifest(planned.storage)))


def open_again(storage: Storage) -> latentcache.Cache:
    """The snapshot that is published now."""
    return latentcache.open_cache(storage.url, storage._options)


def clips_of(cache: latentcache.Cache) -> dict[str, Any]:
    """Each clip that is ok, by its key: its compressed bytes, and what its sample says beside them.

    The bytes of Parquet are those of the latents, without the row's number behind them.
    """
    found = {}
    shard_format, layouts = get_format(cache.manifest.format), cache.manifest.layouts()
    for shard in sorted(cache.committed):
        rows = cache.rows(*shard)
        chunks = shard_format.take(cache.storage, layouts[shard.bucket], shard.number, rows.chunks)
        names = [
            "key",
            "caption",
            "source",
            "start",
            "start_s",
            "frames",
            "fps",
            *PICTURE,
            *rows.kept,
        ]
        for position, chunk in enumerate(chunks):
            values = {name: rows.column(name, [position])[0] for name in names}
            # A kept column that only other clips of the shard have is null.
            facts = {name: repr(value) for name, value in values.items() if value is not None}
            assert values["key"] not in found, "a clip is there twice"
            found[values["key"]] = (facts, chunk.data[:-64] if chunk.facts else chunk.data)
    assert len(found) == len(cache)
    return found


def failed_of(cache: latentcache.Cache) -> set[tuple[str, str]]:
    """Key and reason of each clip that failed; sources that gave no clip, too."""
    rows = cache.table(["key", "reason"]).to_pylist()
    return {(row["key"], row["reason"]) for row in rows if row["reason"]}


def run(job: str, *args: object, status: int = 0) -> str:
    found, printed = run_inline(job, *args)
    assert found == status, printed
    return printed


def opened(path: Path) -> latentcache.Cache:
    return latentcache.open_cache(str(path))


def make_with(folder: Path, name: str, changed: int, **facts: object) -> PlannedCache:
    """A cache of which something is known of one source that is not so elsewhere."""

    def other(number: int, source: Any = tool._source) -> dict[str, Any]:
        row = source(number)
        return {**row, **facts} if number == changed else row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "_source", other)
        planned = plan_cache(folder, str(folder / name))
    fill_cache(planned, seed=5)
    return planned
