"""One schema for the sample tables of a cache whose clips were planned with several kept columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from latentcache.format.generations import Generation, Part
from latentcache.reading.shared_schema import steps_of, with_kept


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
        kept="",
    )


PLACES = [("a", 0), ("a", 2), ("b", 0), ("b", 1), ("b", 3)]


def test_each_shard_has_the_columns_of_its_own_step_or_of_one_that_changed_it() -> None:
    first, second, third, last = steps = [
        step(1, "plan", ("a", 0, 3), ("b", 0, 2)),
        step(2, "grow", ("b", 2, 2)),
        step(3, "grow"),
        step(4, "grow", ("b", 4, 1)),
    ]
    assert steps_of(steps, PLACES, [None] * 5) == [first, second]
    changed = [None, third.folder, third.folder, None, third.folder]
    assert steps_of(steps, PLACES, changed) == [first, third]
    assert steps_of(steps, PLACES, [third.folder] * 5) == [third]
    assert steps_of(steps, [*PLACES, ("b", 4)], [None] * 6) == [first, second, last]
    assert steps_of(steps, [], []) == []


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
