"""Names are found by their hashes as a dictionary finds them, also where hashes are the same."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from latentcache.core import names as looked_up
from latentcache.core.names import NameIndex, may_repeat


def column(names: list[str], cut: int) -> pa.ChunkedArray:
    return pa.chunked_array([names[:cut], names[cut:]], pa.string())


@pytest.fixture(name="few_hashes", params=[False, True])
def few_hashes_fixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_up, "CHUNK_ROWS", 7)
    if request.param:
        monkeypatch.setattr(
            looked_up, "hashes_of", lambda some: np.array([len(n) for n in some.to_pylist()], int)
        )


@pytest.mark.usefixtures("few_hashes")
def test_names_are_found_where_they_are() -> None:
    draw = random.Random(0)
    there = [f"{'é' * draw.randrange(4)}{n}" for n in range(200)]
    draw.shuffle(there)
    asked = [*draw.sample(there, 100), *(f"x{n}" for n in range(100)), ""]
    draw.shuffle(asked)
    found = NameIndex(column(there, 50)).find(column(asked, 31))
    row_of = {name: row for row, name in enumerate(there)}
    assert found.tolist() == [row_of.get(name, -1) for name in asked]


@pytest.mark.usefixtures("few_hashes")
def test_the_first_of_equal_names_is_found() -> None:
    index = NameIndex(column(["b", "a", "b", "a"], 1))
    assert index.find(column(["a", "b", "c"], 2)).tolist() == [1, 0, -1]


def test_nothing_is_found_among_no_names() -> None:
    nothing = pa.chunked_array([], pa.string())
    assert NameIndex(nothing).find(column(["a", "b"], 1)).tolist() == [-1, -1]
    assert NameIndex(column(["a"], 1)).find(nothing).tolist() == []


def test_names_that_are_there_twice_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_up, "CHUNK_ROWS", 2)
    names = column(["a", "b", "c", "a", "d", "c", "c"], 3)
    assert may_repeat(names).tolist() == [True, False, True, True, False, True, True]
    assert may_repeat(column(["a", "b"], 1)).tolist() == [False, False]
    assert may_repeat(pa.chunked_array([], pa.string())).tolist() == []
