"""What a cache knows of its sources: the last that was said of each, and their rows that count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latentcache.core.records import ShardId
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning.create import take_step
from latentcache.planning.known import KnownCache, as_gone, as_sources, retire
from latentcache.planning.known_sources import KnownSources, changed
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from tests.tools.planned import plan_cache

BUCKET = "5x64x96"


@pytest.fixture(name="planned")
def planned_fixture(tmp_path: Path) -> PlannedCache:
    return plan_cache(tmp_path, str(tmp_path / "cache"))


def known_of(planned: PlannedCache) -> KnownCache:
    return KnownCache(planned.storage, planned.manifest, planned.plan)


def said(what: str, **facts: Any) -> dict[str, Any]:
    row = {"source": "v", "url": "/a/v", "kind": "video", "identity": "one", "stamp": "1"}
    return {**row, "what": what, **facts}


def after(known: KnownSources, *rows: dict[str, Any]) -> KnownSources:
    return KnownSources(
        changed(known.table, pa.Table.from_pylist([*rows], schema=PLANNED_SOURCE_SCHEMA))
    )


def test_the_last_that_was_said_of_a_source_counts() -> None:
    nothing = KnownSources(PLANNED_SOURCE_SCHEMA.empty_table())
    other = said("planned", source="w")
    known = after(nothing, said("rejected"), other)
    assert known["v"].is_rejected
    known = after(known, said("planned", identity="two"))
    planned = known["v"]
    assert (planned.identity, planned.is_rejected) == ("two", False)
    known = after(known, said("moved", url="/b/v", stamp="2", identity="of no matter"))
    assert known["v"] == replace(planned, url="/b/v", stamp="2")
    known = after(known, said("gone"))
    assert [*known] == ["w"]
    assert "v" not in known
    known = after(known, said("moved"), said("gone", source="x"))
    assert [*known] == ["w"]
    assert not known["w"].is_rejected


def test_many_names_are_looked_up_at_once() -> None:
    nothing = KnownSources(PLANNED_SOURCE_SCHEMA.empty_table())
    known = after(nothing, *(said("planned", source=name, identity=name) for name in "abcd"))
    names = pa.chunked_array([["d", "x"], ["a"]])
    rows = known.find(names)
    found = [None if row < 0 else known.at(row).identity for row in rows.tolist()]
    assert found == ["d", None, "a"]
    assert known.without(rows).to_pylist() == ["b", "c"]
    assert nothing.find(names).tolist() == [-1, -1, -1]


def test_rejected_sources_are_known_and_have_no_rows(planned: PlannedCache) -> None:
    known = known_of(planned)
    assert sorted(known.sources) == [f"v{n}" for n in range(10)]
    assert known.rejected == ["v9"]
    assert known.rows_of(["v9"]).num_rows == 0
    assert known.rejected_rows()["source"].to_pylist() == ["v9"]
    assert as_sources(known, pa.chunked_array([["v9"]])).to_pylist() == [
        {"source": "v9", "url": "/nowhere/v9.mp4", "kind": "video", "identity": "id9"}
        | {"stamp": None}
    ]


def test_rows_are_found_by_place_and_by_source(planned: PlannedCache) -> None:
    known = known_of(planned)
    rows = known.rows_at({ShardId(BUCKET, 0): [0, 2], ShardId(BUCKET, 1): [1]})
    places = zip(*(rows[name].to_pylist() for name in ("bucket", "shard", "row")), strict=True)
    assert [*places] == [(BUCKET, 0, 0), (BUCKET, 0, 2), (BUCKET, 1, 1)]
    assert known.rows_of(rows["source"].to_pylist())["key"] == rows["key"]


def test_retired_rows_are_known_no_more(planned: PlannedCache) -> None:
    rows = known_of(planned).rows_of(["v0", "v1"])
    taken = take_step(planned, Step(kind="repair", retired=[retire(rows, "damaged")]))
    assert taken is not None
    known = known_of(taken)
    assert known.rows_of(["v0", "v1"]).num_rows == 0
    all_rows = sum(found.num_rows for _, found in known.shards())
    assert all_rows == planned.manifest.num_clips - 2 == taken.manifest.num_clips
    assert known.num_rows(ShardId(BUCKET, 0)) == planned.manifest.num_rows(ShardId(BUCKET, 0))


def test_a_url_keeps_its_query_unless_the_source_is_gone(planned: PlannedCache) -> None:
    known, signed = known_of(planned), "https://me:word@h/a.mp4?sig=4711"
    known.sources = after(known.sources, said("planned", source="signed", url=signed))
    names = pa.chunked_array([["signed"]])
    assert as_sources(known, names)["url"].to_pylist() == [signed]
    assert as_gone(known, names)["url"].to_pylist() == ["https://h/a.mp4"]
