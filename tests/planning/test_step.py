"""A step: where its clips go, what its generation says, and that its digest is of its tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from latentcache.core.records import Bucket, ShardId
from latentcache.format.generations import digest_of, read_generations
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.format.tables import from_parquet
from latentcache.planning.known import KnownCache, retire
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step, tables_of, to_generation, write_step
from tests.tools.planned import plan_cache

BUCKET = Bucket(frames=5, height=64, width=96)


@pytest.fixture(name="planned")
def planned_fixture(tmp_path: Path) -> PlannedCache:
    return plan_cache(tmp_path, str(tmp_path / "cache"))


def rows_of(planned: PlannedCache, *names: str) -> pa.Table:
    """The planned clips of some sources, with their bucket."""
    return KnownCache(planned.storage, planned.manifest, planned.plan).rows_of(names)


def step_of(planned: PlannedCache) -> Step:
    """A step with something of everything: four clips again, of which the old rows are retired."""
    rows = rows_of(planned, "v0", "v1", "v2", "v4")
    step = Step(kind="retry", retired=[retire(rows, "tried again")], num_relabelled=3)
    step.clips[BUCKET] = [rows.drop_columns(["bucket"])]
    step.columns[ShardId(BUCKET.name, 1)] = pa.table({"row": pa.array([0, 1, 2], pa.int32())})
    names = ("source", "url", "kind", "identity", "stamp")
    step.add_sources(pa.table({name: [f"{name} {n}" for n in range(2)] for name in names}), "moved")
    return step


def test_new_clips_go_behind_the_shards_that_there_are(planned: PlannedCache) -> None:
    step = step_of(planned)
    (bucket,) = (b for b in planned.manifest.buckets if b.name == BUCKET.name)
    generation, tables = to_generation(planned.manifest, step)
    (part,) = generation.parts
    shard_clips = planned.manifest.shard_clips
    assert part.first_shard == bucket.num_shards
    assert (part.num_clips, part.num_shards) == (4, -(-4 // shard_clips))
    plan = from_parquet(next(data for path, data in tables.items() if path.startswith("plan/")))
    assert plan["shard"].to_pylist() == [bucket.num_shards + n // shard_clips for n in range(4)]
    assert plan["row"].to_pylist() == [n % shard_clips for n in range(4)]


def test_a_generation_says_what_its_step_does(planned: PlannedCache) -> None:
    step = step_of(planned)
    generation, _ = to_generation(planned.manifest, step)
    assert (generation.number, generation.kind) == (2, "retry")
    assert generation.parent_sha256 == planned.manifest.generations[0].sha256
    assert generation.num_retired == step.num_clips == 4
    assert (generation.num_sources, generation.num_moved, generation.num_rejected) == (2, 2, 0)
    assert generation.num_relabelled == step.num_relabelled


def test_the_tables_of_a_generation_follow_from_it(planned: PlannedCache) -> None:
    step = step_of(planned)
    generation, tables = to_generation(planned.manifest, step)
    names = tables_of(generation, list(step.columns))
    assert set(names.values()) == tables.keys()
    assert generation.tables_sha256 == digest_of({name: tables[p] for name, p in names.items()})
    step.retired = [pa.concat_tables(step.retired).slice(1)]
    other, _ = to_generation(planned.manifest, step)
    assert other.folder != generation.folder


def test_of_two_steps_of_one_number_the_first_counts(planned: PlannedCache) -> None:
    storage, manifest = planned.storage, planned.manifest
    assert write_step(storage, manifest, step_of(planned))
    after = read_generations(storage)
    assert not write_step(storage, manifest, Step(kind="repair", retired=step_of(planned).retired))
    assert read_generations(storage) == after
    assert [generation.kind for generation in after] == ["plan", "retry"]


def test_an_empty_step_is_nothing_to_do(planned: PlannedCache) -> None:
    step = Step(kind="grow")
    step.add_sources(pa.table({"source": pa.array([], pa.string())}), "gone")
    assert not step
    step.retired.append(RETIRED_SCHEMA.empty_table())
    assert step
