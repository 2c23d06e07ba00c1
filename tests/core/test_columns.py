"""Values are taken out of a column chunk by chunk as out of one piece."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from latentcache.core.columns import replaced, taken


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [4, -1, 0, 3, 3], [-1, -1, 0, 0, 4], [2], []])
def test_values_come_in_the_order_of_the_rows(rows: list[int]) -> None:
    texts = ["a", None, "c", "d", "e"]
    column = pa.chunked_array([texts[:2], [], texts[2:3], texts[3:]], pa.string())
    found = taken(column, np.array(rows, np.int32))
    assert found.to_pylist() == [None if row < 0 else texts[row] for row in rows]
    assert found.type == pa.string()


def test_of_no_values_there_are_nulls() -> None:
    nothing = pa.chunked_array([], pa.list_(pa.string()))
    assert taken(nothing, np.array([-1, -1])).to_pylist() == [None, None]


def test_values_are_replaced_one_after_the_other() -> None:
    column = pa.chunked_array([["a", "b"], [], ["c"], ["d", None]], pa.string())
    found = replaced(column, np.array([False, True, False, True, True]), ["x", "y", "z"])
    assert found.to_pylist() == ["a", "x", "c", "y", "z"]
