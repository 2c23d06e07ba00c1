"""Rows of several caches are joined: their kept columns have one type each."""

from __future__ import annotations

import pyarrow as pa
import pytest

from latentcache.copying.plan_rows import first_types, joined_rows
from latentcache.errors import CacheError

NUMBERS, TEXTS = pa.table({"x": [1, 2]}), pa.table({"x": ["one", None]})


def test_types_that_go_together_stay_as_they_are() -> None:
    tables = [NUMBERS, pa.table({"x": [0.5], "y": ["more"]})]
    kinds = first_types(tables)
    assert kinds is None
    joined = joined_rows(tables, kinds)
    assert joined.to_pydict() == {"x": [1.0, 2.0, 0.5], "y": [None, None, "more"]}


def test_of_types_that_do_not_the_first_one_counts() -> None:
    kinds = first_types([TEXTS, NUMBERS])
    assert joined_rows([NUMBERS, TEXTS], kinds)["x"].to_pylist() == ["1", "2", "one", None]


def test_values_that_the_first_type_does_not_hold_are_refused_with_what_can_be_done() -> None:
    kinds = first_types([NUMBERS, TEXTS])
    with pytest.raises(CacheError, match=r"column x is int64 .* and string .*Name the cache first"):
        joined_rows([NUMBERS, TEXTS], kinds)
