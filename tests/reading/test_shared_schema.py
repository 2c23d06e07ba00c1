"""One schema for the sample tables of a cache whose clips were planned with several kept columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from latentcache.format.generations import Generation, Part
from latentcache.reading.shared_schema import NUM_TRIED, alike, with_kept


def step(
    number: int, kind: Any, *parts: tuple[str, int, int], kept: str | None = None
) -> Generation:
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
        kept=kept,
    )


PLACES = [("a", 0), ("a", 2), ("b", 0), ("b", 1), ("b", 3)]


def test_shards_of_a_generation_and_of_each_change_are_alike() -> None:
    steps = [
        step(1, "plan", ("a", 0, 3), ("b", 0, 2)),
        step(2, "grow", ("b", 2, 2)),
        step(3, "grow"),
    ]
    first, second, third = steps
    assert alike(steps, PLACES, [None] * 5) == [(first, PLACES[:4]), (second, [("b", 3)])]
    changed = [None, third.folder, third.folder, None, third.folder]
    assert alike(steps, PLACES, changed) == [
        (first, [("a", 0), ("b", 1)]),
        (third, [("a", 2), ("b", 0)]),
        (third, [("b", 3)]),
    ]
    assert alike(steps, [], []) == []


def test_of_a_generation_that_says_what_it_keeps_no_shard_is_looked_at() -> None:
    steps = [
        step(1, "plan", ("a", 0, 3), ("b", 0, 2), kept=""),
        step(2, "grow", ("b", 2, 2)),
        step(3, "grow", kept=""),
        step(4, "grow", ("b", 4, 1), kept=""),
    ]
    first, second, third, _ = steps
    assert alike(steps, PLACES, [None] * 5) == [(first, []), (second, [("b", 3)])]
    changed = [third.folder] * 5
    assert alike(steps, PLACES, changed) == [(third, [])]


def test_a_few_of_many_shards_are_tried() -> None:
    places = [("a", n) for n in range(100)]
    ((_, some),) = alike([step(1, "plan", ("a", 0, 100))], places, [None] * 100)
    assert some == places[:NUM_TRIED]


@pytest.mark.parametrize("kind", ["retry", "repair", "compact", "merge", "copy"])
def test_each_bucket_of_copied_rows_is_looked_at(kind: str) -> None:
    steps = [step(1, kind, ("a", 0, 3), ("b", 0, 2))]
    places = [("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert [some for _, some in alike(steps, places, [None] * 4)] == [places[:2], places[2:]]


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
