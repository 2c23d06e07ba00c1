"""Thrift's compact protocol: what is written is read, and the rest gives ValueError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.format.thrift import read_struct
from tests.tools import compact

I64 = st.integers(-(2**63), 2**63 - 1)


def values(depth: int) -> st.SearchStrategy[Any]:
    """Members of structs that are nested `depth` deep at most."""
    simple = [I64, st.binary(max_size=20)]
    inner = [*simple, structs(depth - 1)] if depth else simple
    lists = [st.lists(each, max_size=16) for each in inner]
    return st.one_of(st.booleans(), *inner, *lists)


def structs(depth: int) -> st.SearchStrategy[dict[int, Any]]:
    return st.dictionaries(st.integers(-(2**15), 2**15 - 1), values(depth), max_size=3)


def count(value: Any) -> int:
    """The values in a value, itself among them, and the bytes of those that are bytes."""
    if isinstance(value, dict):
        return 1 + sum(map(count, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    return len(value) if isinstance(value, bytes) else 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("00", {}),
        ("11 00", {1: True}),
        ("22 00", {2: False}),
        ("15 01 00", {1: -1}),
        ("15 02 15 03 00", {1: 1, 2: -2}),
        ("16 d8 04 00", {1: 300}),
        ("13 7f 00", {1: 127}),
        ("06 c8 01 02 00", {100: 1}),
        ("18 03 61 62 63 00", {1: b"abc"}),
        ("17 00 00 00 00 00 00 f0 3f 25 02 00", {1: None, 3: 1}),
        ("19 25 02 04 00", {1: [1, 2]}),
        ("19 21 01 02 00", {1: [1, 2]}),
        ("1c 15 02 00 25 04 00", {1: {1: 1}, 3: 2}),
        ("19 2c 00 15 02 00 00", {1: [{}, {1: 1}]}),
        ("19 f8 0f" + " 01 61" * 15 + " 00", {1: [b"a"] * 15}),
    ],
)
def test_reads_the_bytes_of_the_specification(data: str, expected: dict[int, Any]) -> None:
    assert read_struct(bytes.fromhex(data), 0) == (expected, len(bytes.fromhex(data)))


@pytest.mark.slow
@given(structs(2), st.binary(max_size=9), st.binary(max_size=9))
def test_reads_what_was_written_wherever_it_lies(
    written: dict[int, Any], before: bytes, after: bytes
) -> None:
    data = compact.write_struct(written)
    for kind in (bytes, memoryview):
        found, end = read_struct(kind(before + data + after), len(before))
        assert found == written
        assert end == len(before) + len(data)


@pytest.mark.slow
@given(structs(1), st.data())
def test_a_struct_that_is_cut_off_is_refused(written: dict[int, Any], data: st.DataObject) -> None:
    whole = compact.write_struct(written)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ValueError, match="of it"):
        read_struct(cut, 0)


@given(st.binary(max_size=200))
def test_random_bytes_give_no_more_values_than_they_are(data: bytes) -> None:
    for kind in (bytes, memoryview):
        try:
            found, end = read_struct(kind(data), 0)
        except ValueError:
            continue
        assert end <= len(data)
        assert count(found) <= 2 * end


@pytest.mark.parametrize("kind", [compact.INTEGER, compact.DOUBLE, compact.BINARY, compact.STRUCT])
@pytest.mark.parametrize("length", [100, 2**31, 2**62, 2**68])
def test_a_list_of_more_items_than_bytes_is_refused(kind: int, length: int) -> None:
    data = compact.field_header(1, compact.LIST) + compact.list_header(length, kind)
    with pytest.raises(ValueError, match=f"has {length} items, more than bytes"):
        read_struct(data + bytes(20), 0)


@pytest.mark.parametrize("length", [21, 2**31, 2**62, 2**68])
def test_bytes_beyond_the_end_are_refused(length: int) -> None:
    header = compact.field_header(1, compact.BINARY) + compact.varint(length)
    for data in (header + bytes(20), memoryview(header + bytes(20))):
        with pytest.raises(ValueError, match="does not end"):
            read_struct(data, 0)
    names = compact.field_header(1, compact.LIST) + compact.list_header(2, compact.BINARY)
    with pytest.raises(ValueError, match="does not end"):
        read_struct(names + compact.varint(length) + bytes(20), 0)


@pytest.mark.parametrize("kind", [0, 10, 11, 13, 14, 15])
def test_a_type_that_parquet_does_not_use_is_refused(kind: int) -> None:
    with pytest.raises(ValueError, match=f"a value of type {kind}, which none has"):
        read_struct(bytes([0x10 | kind]) + bytes(20), 0)


@pytest.mark.parametrize(
    "nest", [compact.field_header(1, compact.STRUCT), b"\x19\x19", b"\x1c\x19\x1c"]
)
def test_nesting_without_end_is_refused(nest: bytes) -> None:
    with pytest.raises(ValueError, match="nested deeper"):
        read_struct(nest * 100_000, 0)


def test_a_number_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="number that does not end"):
        read_struct(compact.field_header(1, compact.INTEGER) + b"\xff" * 100_000, 0)
