"""Cases of what later generations say: changed columns, and rejected sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentcache.format.paths import (
    INDEX,
    columns_index_path,
    columns_path,
    generation_path,
    rejected_path,
    sources_path,
)
from latentcache.format.schemas import CHANGED_SCHEMA, PLANNED_SOURCE_SCHEMA
from latentcache.format.snapshot import publish, to_index
from latentcache.format.tables import from_parquet, to_parquet
from tests.tools.hostile.cases import BUCKET, CASES, case, sound


def grow(folder: Path, tables: Callable[[str], dict[str, pa.Table]], **counts: int) -> None:
    """Take a step whose tables follow from its folder's name; the snapshot is published after it."""
    written = sound(folder)
    first = written.manifest.generations[0]
    step = replace(first, number=2, kind="grow", parent_sha256=first.sha256, parts=(), **counts)
    written.storage.write(generation_path(2), step.to_bytes())
    for path, table in tables(step.folder).items():
        written.storage.write(path, to_parquet(table))
    index = from_parquet(written.storage.read(INDEX))
    manifest = replace(written.manifest, generations=(first, step))
    rows = [
        {**row, "columns": step.folder if columns_of(counts) else None} for row in index.to_pylist()
    ]
    publish(written.storage, to_index(rows, manifest))


def columns_of(counts: dict[str, int]) -> bool:
    return bool(counts.get("num_relabelled"))


def columns_case(name: str, **columns: Any) -> None:
    """Captions of another form than they have."""
    sound_columns = {"row": pa.array(range(4), pa.int32()), "caption": ["a"] * 4}

    def tables(step: str) -> dict[str, pa.Table]:
        table = pa.table({**sound_columns, **columns})
        places = [{"bucket": BUCKET, "shard": shard} for shard in range(2)]
        return {
            columns_index_path(step): pa.Table.from_pylist(places, schema=CHANGED_SCHEMA),
            columns_path(step, BUCKET, 0): table,
            columns_path(step, BUCKET, 1): table,
        }

    CASES[name] = lambda folder: grow(folder, tables, num_relabelled=4)


columns_case("columns_of_no_rows", row=pa.array([], pa.int32()), caption=pa.array([], pa.string()))
columns_case("columns_of_other_rows", row=pa.array([10**9 + n for n in range(4)], pa.int32()))
columns_case("columns_rows_as_text", row=["0", "1", "2", "3"])
columns_case("columns_rows_as_lists", row=[[0], [1], [2], [3]])
columns_case("columns_captions_as_lists", caption=[["a"]] * 4)
columns_case("columns_captions_as_numbers", caption=[1] * 4)
columns_case("columns_that_replace_places", offset=[2**62] * 4)
columns_case("columns_rows_as_nothing", row=pa.nulls(4, pa.int32()))
columns_case("columns_that_replace_places_of_plans", url=["/etc/passwd"] * 4)
columns_case("columns_that_replace_keys", key=["a"] * 4)
columns_case("columns_that_replace_status", status=["failed"] * 4)


@case
def columns_without_captions(folder: Path) -> None:
    grow(folder, lambda _: {}, num_relabelled=4)


def rejected_case(name: str, rejected: pa.Table, sources: pa.Table) -> None:
    """A table of rejected sources, or of sources, of another form than they have."""

    def tables(step: str) -> dict[str, pa.Table]:
        return {rejected_path(step): rejected, sources_path(step): sources}

    CASES[name] = lambda folder: grow(folder, tables, num_rejected=1, num_sources=1)


rejected_case("rejected_of_no_columns", pa.table({"x": [1]}), pa.table({"x": [1]}))
rejected_case(
    "rejected_rows_as_text",
    pa.table({"key": ["a"], "source": ["a"], "row": ["0"], "status": ["failed"]}),
    pa.table({"x": [1]}),
)
rejected_case(
    "rejected_messages_as_lists",
    pa.table(
        {
            "key": ["a"],
            "source": ["a"],
            "row": pa.array([0], pa.int32()),
            "status": ["failed"],
            "message": [["a"]],
        }
    ),
    pa.Table.from_pylist([], schema=PLANNED_SOURCE_SCHEMA),
)
