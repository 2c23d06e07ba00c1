"""One schema for the sample tables of a cache whose clips were planned with several kept columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from latentcache.format.generations import Generation, Part
from latentcache.reading.shared_schema import one_of_each, united, with_kept


def step(number: int, kind: Any, *parts: tuple[str, int, int]) -> Generation:
    """A step that adds these shards: bucket, the first one, and how many."""
    return Generation(
        number=number,
        kind=kind,
        fingerprint="",
        parent_sha256=None,
        tables_sha256="0" * 64,
        created_s=0.0,
        parts=tuple(
            Part(bucket=name, first_shard=first, num_shards=num, num_clips=num)
            for name, first, num in parts
        ),
    )


def test_a_shard_of_each_generation_and_of_each_change_is_looked_at() -> None:
    steps = [
        step(1, "plan", ("a", 0, 3), ("b", 0, 2)),
        step(2, "grow", ("b", 2, 2)),
        step(3, "grow"),
    ]
    places = [("a", 0), ("a", 2), ("b", 0), ("b", 1), ("b", 3)]
    assert one_of_each(steps, places, [None] * 5) == [("a", 0), ("b", 3)]
    changed = [None, "3", "3", None, "3"]
    assert one_of_each(steps, places, changed) == [("a", 0), ("a", 2), ("b", 3)]
    assert one_of_each(steps, [], []) == []


@pytest.mark.parametrize("kind", ["retry", "repair", "compact", "merge", "copy"])
def test_each_bucket_of_copied_rows_is_looked_at(kind: str) -> None:
    steps = [step(1, kind, ("a", 0, 3), ("b", 0, 2))]
    places = [("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert one_of_each(steps, places, [None] * 4) == [("a", 1), ("b", 0)]


def test_a_schema_has_the_columns_of_all_and_floats_where_some_have_them() -> None:
    one = pa.schema([("key", pa.string()), ("score", pa.int64()), ("odd", pa.string())])
    more = pa.struct([("at", pa.list_(pa.int64())), ("pose", pa.list_(pa.float32()))])
    other = pa.schema([("score", pa.float64()), ("odd", pa.int64()), ("per_frame", more)])
    found = united([one, other, pa.schema([("late", pa.bool_())])])
    assert found.names == ["key", "score", "odd", "per_frame", "late"]
    assert found.types == [pa.string(), pa.float64(), pa.string(), more, pa.bool_()]


def test_a_table_has_what_it_lacks_as_nulls_and_the_types_of_all() -> None:
    schema = pa.schema(
        [("score", pa.float64()), ("tags", pa.list_(pa.string())), ("no", pa.int64())]
    )
    table = pa.table({"key": ["a", "b"], "score": [1, None]})
    found = with_kept(table, ["key", "score", "tags"], schema)
    assert found.schema.types == [pa.string(), pa.float64(), pa.list_(pa.string())]
    assert found["score"].to_pylist() == [1.0, None]
    assert found["tags"].to_pylist() == [None, None]


@pytest.mark.parametrize(("values", "kind"), [([2**53 + 1], pa.float64()), (["text"], pa.int64())])
def test_values_that_do_not_fit_stay_as_they_are(values: list[Any], kind: pa.DataType) -> None:
    found = with_kept(pa.table({"score": values}), ["score"], pa.schema([("score", kind)]))
    assert found["score"].to_pylist() == values
