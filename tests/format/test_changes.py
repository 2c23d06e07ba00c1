"""Which rows count: of a clip and its copies always one, unless the clip was retired."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latentcache.core.records import Bucket, ClipId, ShardId
from latentcache.errors import CorruptionError
from latentcache.format.changes import Changes, Copies, _spread, read_changes
from latentcache.format.manifest import refresh
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step, write_step
from tests.tools.planned import plan_cache

NAME = "5x64x96"
BUCKET = Bucket.parse(NAME)
A, B, C, D = (ShardId(NAME, number) for number in range(4))


def copies_of(places: Mapping[ShardId, list[tuple[int, ShardId, int]]]) -> dict[ShardId, Copies]:
    return {
        shard: Copies(
            rows=np.array([row for row, _, _ in found]),
            into_shards=np.array([into.number for _, into, _ in found]),
            into_rows=np.array([row for _, _, row in found]),
        )
        for shard, found in places.items()
    }


#: Two clips of A and one of B go to C; one of these goes on to D.
COPIES = copies_of({A: [(0, C, 0), (2, C, 1)], B: [(1, C, 2)], C: [(1, D, 0)]})
CHAINS = ([(A, 0), (C, 0)], [(A, 2), (C, 1), (D, 0)], [(B, 1), (C, 2)])


def changes(retired: Mapping[ShardId, set[int]] | None = None) -> Changes:
    found = {shard: frozenset(rows) for shard, rows in (retired or {}).items()}
    return Changes(retired=_spread(found, COPIES), copies=COPIES)


@pytest.mark.parametrize("new", [set(), {C}, {D}, {C, D}])
def test_of_a_clip_and_its_copies_one_counts_whatever_is_committed(new: set[ShardId]) -> None:
    there = {A, B, *new}
    standing = changes().among(there)
    for chain in CHAINS:
        counted = [
            (shard, row)
            for shard, row in chain
            if shard in there and row not in standing.retired.get(shard, ())
        ]
        assert counted == [place for place in chain if place[0] in there][-1:]


def test_an_old_shard_need_not_be_there_once_its_copy_is() -> None:
    standing = changes().among({C, D})
    assert standing.retired == {A: {0, 2}, B: {1}, C: {1}}
    assert changes().among({D}).rows(A) == [2], "the copy of its copy is committed"


def test_retiring_a_clip_retires_all_of_its_copies() -> None:
    for shard, row in [(A, 2), (C, 1), (D, 0)]:
        standing = changes({shard: {row}}).among({A, B})
        assert standing.retired == {A: {2}, C: {1}, D: {0}}
    assert changes({B: {1}}).among(set()).retired == {B: {1}, C: {2}}


def test_what_is_planned_is_as_if_all_were_committed() -> None:
    assert changes().planned() == changes().among({A, B, C, D})
    assert changes({A: {2}}).planned() == changes({A: {2}}).among({A, B, C, D})


def test_copies_are_followed_to_the_last_and_back_to_the_first() -> None:
    assert changes().last(ClipId(shard=A, row=2)) == ClipId(shard=D, row=0)
    assert changes().last(ClipId(shard=A, row=1)) == ClipId(shard=A, row=1)
    expected = {0: ClipId(shard=A, row=0), 1: ClipId(shard=A, row=2), 2: ClipId(shard=B, row=1)}
    assert changes().origins(C) == expected
    assert changes().origins(A) == {}


def write_copies(planned: PlannedCache, places: list[tuple[int, int]]) -> PlannedCache:
    """Write a generation that copies rows, given as (shard, row), to new shards."""
    rows = pa.concat_tables(
        [planned.plan.table(ShardId(NAME, shard)).slice(row, 1) for shard, row in places]
    )
    origins = rows.select(["shard", "row"])
    step = Step(kind="compact", clips={BUCKET: [rows]}, origins={BUCKET: origins})
    assert write_step(planned.storage, planned.manifest, step)
    manifest = refresh(planned.storage, planned.manifest)
    return PlannedCache(config=planned.config, manifest=manifest, storage=planned.storage)


def test_a_generation_that_copies_is_read_as_it_was_written(tmp_path: Path) -> None:
    planned = plan_cache(tmp_path, str(tmp_path / "cache"))
    num_clips = planned.manifest.num_clips
    after = write_copies(planned, [(2, 0), (0, 1), (0, 2), (1, 0)])
    assert after.manifest.generations[-1].num_copied == 4
    assert after.manifest.num_clips == num_clips
    found = read_changes(after.storage, after.manifest)
    new = ShardId(NAME, 3)
    assert [origin for _, origin in sorted(found.origins(new).items())] == [
        ClipId(shard=ShardId(NAME, shard), row=row) for shard, row in [(2, 0), (0, 1), (0, 2)]
    ]
    assert list(found.copies[A]) == [(1, 3, 1), (2, 3, 2)]
    assert found.origins(ShardId(NAME, 4)) == {0: ClipId(shard=B, row=0)}
    assert found.retired == {}


def test_retired_rows_of_storage_spread_over_copies(tmp_path: Path) -> None:
    planned = write_copies(plan_cache(tmp_path, str(tmp_path / "cache")), [(0, 1), (1, 0)])
    row = {"bucket": NAME, "shard": 0, "row": 1, "why": "removed"}
    step = Step(kind="grow", retired=[pa.Table.from_pylist([row], schema=RETIRED_SCHEMA)])
    assert write_step(planned.storage, planned.manifest, step)
    manifest = refresh(planned.storage, planned.manifest)
    assert read_changes(planned.storage, manifest).retired == {A: {1}, D: {0}}


def test_a_shard_is_copied_once_and_only_to_later_ones(tmp_path: Path) -> None:
    planned = write_copies(plan_cache(tmp_path, str(tmp_path / "cache")), [(0, 1)])
    twice = write_copies(planned, [(0, 2)])
    with pytest.raises(CorruptionError, match="copies rows of shards that were copied before"):
        read_changes(twice.storage, twice.manifest)
    back = write_copies(plan_cache(tmp_path, str(tmp_path / "other")), [(0, 1)])
    path = next((tmp_path / "other/copied").iterdir())
    assert read_changes(back.storage, back.manifest).copies.keys() == {A}
    table = from_parquet(path.read_bytes())
    at = table.column_names.index("into_shard")
    field = table.schema.field("into_shard")
    path.write_bytes(to_parquet(table.set_column(at, field, pa.array([0], pa.int64()))))
    with pytest.raises(CorruptionError, match="into shards before their own"):
        read_changes(back.storage, back.manifest)
