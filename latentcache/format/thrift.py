"""Thrift's compact protocol, as Parquet's footers and page headers are written in it, to plain values.

Read here, because pyarrow ends the process where a footer's column is not as it should be.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

#: A struct: its members by their numbers.
Struct = dict[int, Any]

_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LIST, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 9, 12
_MAX_DEPTH = 16
_MAX_SHIFT = 63


def read_struct(data: Any, position: int) -> tuple[Struct, int]:
    """Return the struct at `position`, and where it ends. Raises ValueError where there is none."""
    try:
        found, end = _struct(data, position, 0)
    except IndexError:
        end = len(data) + 1
    if end > len(data):
        raise ValueError("a header of it does not end")
    return found, end


def _struct(data: Any, position: int, depth: int) -> tuple[Struct, int]:
    found: Struct = {}
    field = 0
    while byte := data[position]:
        position, delta, kind = position + 1, byte >> 4, byte & 15
        if delta:
            field += delta
        else:
            field, position = _integer(data, position)
        if kind in _BOOLEANS:
            found[field] = kind == 1
        else:
            found[field], position = _value(data, position, kind, depth)
    return found, position + 1


def _value(data: Any, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _integer(data, position)
    if kind == _BINARY:
        length, position = _varint(data, position)
        return bytes(data[position : position + length]), position + length
    if depth > _MAX_DEPTH:
        raise ValueError("a header of it is nested deeper than any is")
    if kind == _STRUCT:
        return _struct(data, position, depth + 1)
    if kind == _LIST:
        return _list(data, position, depth + 1)
    if kind in (*_BOOLEANS, _BYTE):
        return data[position], position + 1
    if kind == _DOUBLE:
        return None, position + 8
    raise ValueError(f"a header of it has a value of type {kind}, which none has")


def _list(data: Any, position: int, depth: int) -> tuple[list[Any], int]:
    byte, position = data[position], position + 1
    length, kind = byte >> 4, byte & 15
    if length == 15:
        length, position = _varint(data, position)
    if length > len(data) - position:
        raise ValueError(f"a list in a header of it has {length} items, more than bytes")
    items = []
    for _ in range(length):
        item, position = _value(data, position, kind, depth)
        items.append(item)
    return items, position


def _integer(data: Any, position: int) -> tuple[int, int]:
    raw, position = _varint(data, position)
    return (raw >> 1) ^ -(raw & 1), position


def _varint(data: Any, position: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[position]) > 127:
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if shift > _MAX_SHIFT:
            raise ValueError("a header of it has a number that does not end")
    return value | byte << shift, position + 1
