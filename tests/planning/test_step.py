"""A step: where its clips go, what its generation says, and that its digest is of its tables."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from latentcache.core.records import Bucket, ShardId
from latentcache.errors import CorpusError
from latentcache.format.generations import digest_of, read_generations
from latentcache.format.kept_schema import kept_schema
from latentcache.format.manifest import refresh
from latentcache.format.paths import generation_path
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.format.tables import from_parquet
from latentcache.planning import step as steps
from latentcache.planning.known import KnownCache, retire
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step, tables_of, to_generation, write_step
from latentcache.storage.folder import Storage
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


def test_a_generation_says_which_columns_its_clips_and_changes_keep(planned: PlannedCache) -> None:
    first = planned.manifest.generations[0]
    assert first.kept is not None
    assert kept_schema(first.kept).equals(pa.schema([("score", pa.float64())]))
    step = step_of(planned)
    changed = pa.table({"row": pa.array([0], pa.int32()), "caption": ["a"], "tags": [["b"]]})
    step.columns[ShardId(BUCKET.name, 1)] = changed
    generation, _ = to_generation(planned.manifest, step)
    assert generation.kept is not None
    expected = pa.schema([("score", pa.float64()), ("tags", pa.list_(pa.string()))])
    assert kept_schema(generation.kept).equals(expected)


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


def test_a_step_whose_answer_was_lost_counts(planned: PlannedCache) -> None:
    """The store has created it, and says at the second try that it is there."""
    create = Storage.create

    def lose(storage: Storage, path: str, data: bytes) -> bool:
        return create(storage, path, data) and path != generation_path(2)

    with mock.patch.object(Storage, "create", lose):
        assert write_step(planned.storage, planned.manifest, step_of(planned))


def test_tables_that_are_cleaned_before_their_step_counts_are_put_back(
    planned: PlannedCache,
) -> None:
    """A run that was halted for hours between its tables and its step: they were of no generation."""
    create, step = Storage.create, step_of(planned)
    tables = to_generation(planned.manifest, step)[1]

    def clean_first(storage: Storage, path: str, data: bytes) -> bool:
        if path == generation_path(2):
            for table in tables:
                storage.delete(table)
        return create(storage, path, data)

    with mock.patch.object(Storage, "create", clean_first):
        assert write_step(planned.storage, planned.manifest, step)
    assert {path: planned.storage.read(path) for path in tables} == tables


def test_a_source_is_read_where_it_was_found_last(planned: PlannedCache) -> None:
    """It has moved, and then its content has changed at a third place: that is in its plan."""
    storage, names = planned.storage, ("source", "url", "kind", "identity", "stamp")

    def say(what: str, url: str, *clips: pa.Table) -> PlannedCache:
        manifest = refresh(storage, planned.manifest)
        step = Step(kind="grow", clips={BUCKET: [*clips]} if clips else {})
        said = dict(zip(names, ("v0", url, "video", "id", None), strict=True))
        step.add_sources(pa.table({n: pa.array([v], pa.string()) for n, v in said.items()}), what)
        assert write_step(storage, manifest, step)
        return PlannedCache(
            config=planned.config, manifest=refresh(storage, manifest), storage=storage
        )

    old, (bucket,) = (
        ShardId(BUCKET.name, 0),
        (b for b in planned.manifest.buckets if b.name == BUCKET.name),
    )
    new = ShardId(BUCKET.name, bucket.num_shards)
    say("moved", "/second/v0.mp4")
    rows = rows_of(planned, "v0").drop_columns(["bucket"])
    url = rows.column_names.index("url")
    rows = rows.set_column(url, "url", pa.array(["/third/v0.mp4"]))
    now = say("planned", "/third/v0.mp4", rows)
    assert now.plan.table(new)["url"].to_pylist() == ["/third/v0.mp4"]
    assert now.plan.table(old)["url"].to_pylist()[0] == "/second/v0.mp4"
    now = say("moved", "/fourth/v0.mp4")
    for shard in (old, new):
        assert now.plan.table(shard)["url"].to_pylist()[0] == "/fourth/v0.mp4"


def test_an_empty_step_is_nothing_to_do(planned: PlannedCache) -> None:
    step = Step(kind="grow")
    step.add_sources(pa.table({"source": pa.array([], pa.string())}), "gone")
    assert not step
    step.retired.append(RETIRED_SCHEMA.empty_table())
    assert step


def test_a_table_that_no_reader_would_take_is_refused_before_anything_is_written(
    planned: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(planned.storage.list(""))
    monkeypatch.setattr(steps, "MAX_PLAN_BYTES", 1000)
    with pytest.raises(
        CorpusError, match=r"the table 'plan 5x64x96' .* none may have more than 1000"
    ):
        write_step(planned.storage, planned.manifest, step_of(planned))
    assert sorted(planned.storage.list("")) == before
