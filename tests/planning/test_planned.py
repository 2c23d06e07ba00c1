"""Plans in memory: each is read once where all have room, and of large ones the last."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latentcache.planning import planned as planned_module
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.storage.folder import Storage
from tests.tools.planned import plan_cache


@pytest.fixture(name="planned")
def planned_fixture(tmp_path: Path) -> PlannedCache:
    return plan_cache(tmp_path, str(tmp_path / "cache"))


def rows_by_bucket(
    planned: PlannedCache, monkeypatch: pytest.MonkeyPatch, *, times: int
) -> tuple[list[pa.Table], list[int]]:
    """The plans' rows, shard by shard and again, and how often each plan was read."""
    reads: Counter[str] = Counter()
    read_plan = planned_module.read_plan

    def counting(storage: Storage, manifest: Any, folder: str, bucket: str) -> pa.Table:
        reads[bucket] += 1
        return read_plan(storage, manifest, folder, bucket)

    monkeypatch.setattr(planned_module, "read_plan", counting)
    reader = PlanReader(planned.storage, planned.manifest)
    rows = [reader.table(shard) for _ in range(times) for shard in planned.planned_shards()]
    return rows, [reads[bucket.name] for bucket in planned.manifest.buckets]


def test_plans_that_have_room_are_read_once(
    planned: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reads = rows_by_bucket(planned, monkeypatch, times=2)
    assert reads == [1, 1]


def test_of_large_plans_one_is_in_memory(
    planned: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = rows_by_bucket(planned, monkeypatch, times=2)
    monkeypatch.setattr(planned_module, "KEPT_BYTES", 0)
    found, reads = rows_by_bucket(planned, monkeypatch, times=2)
    assert reads == [2, 2]
    assert repr([each.to_pydict() for each in found]) == repr(
        [each.to_pydict() for each in expected]
    )
