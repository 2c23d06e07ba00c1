"""Rows of several caches are joined: their kept columns have one type each."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from latentcache.copying.plan_rows import common_types, joined_rows
from latentcache.errors import CacheError

NUMBERS, TEXTS = pa.table({"x": [1, 2]}), pa.table({"x": ["one", None]})


def test_types_that_go_together_stay_as_they_are() -> None:
    tables = [NUMBERS, pa.table({"x": [0.5], "y": ["more"]})]
    joined = joined_rows(tables, common_types(tables))
    assert joined.to_pydict() == {"x": [1.0, 2.0, 0.5], "y": [None, None, "more"]}


def test_of_types_that_do_not_the_first_one_counts() -> None:
    kinds = common_types([TEXTS, NUMBERS])
    assert joined_rows([NUMBERS, TEXTS], kinds)["x"].to_pylist() == ["1", "2", "one", None]


def test_values_that_the_first_type_does_not_hold_are_refused_with_what_can_be_done() -> None:
    kinds = common_types([NUMBERS, TEXTS])
    with pytest.raises(CacheError, match=r"column x is int64 .* and string .*Name the cache first"):
        joined_rows([NUMBERS, TEXTS], kinds)


TIME, DAY = datetime.datetime(2024, 1, 1, 17, 30), datetime.date(2024, 1, 1)
TIMES, DAYS = pa.table({"x": [TIME]}), pa.table({"x": [DAY]})


@pytest.mark.parametrize(
    "tables",
    [
        (TEXTS, pa.table({"x": [b"bytes"]})),
        (pa.table({"x": [b"bytes"]}), TEXTS),
        (pa.table({"x": [["text"]]}), pa.table({"x": [[b"bytes"]]})),
        (DAYS, TIMES),
        (TIMES, pa.table({"x": pa.array([TIME], pa.timestamp("us", "UTC"))})),
        (pa.table({"x": [2**53 + 1]}), pa.table({"x": [0.5]})),
    ],
)
def test_values_that_would_be_others_in_the_common_type_are_refused(
    tables: tuple[pa.Table, ...],
) -> None:
    with pytest.raises(CacheError, match=r"the kept column x is .* do not fit"):
        joined_rows(tables, common_types(tables))


def test_days_go_into_a_column_of_times() -> None:
    joined = joined_rows([TIMES, DAYS], common_types([TIMES, DAYS]))
    assert joined["x"].to_pylist() == [TIME, datetime.datetime(2024, 1, 1)]


def test_objects_go_together_where_one_lacks_members() -> None:
    tables = [pa.table({"x": [{"a": 1}, None]}), pa.table({"x": [{"b": "b", "a": 0.5}]})]
    joined = joined_rows(tables, common_types(tables))
    assert joined["x"].to_pylist() == [{"a": 1.0, "b": None}, None, {"a": 0.5, "b": "b"}]
