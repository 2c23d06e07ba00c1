"""Thrift's compact protocol, as Parquet's footers and page headers are written in it, to plain values.

Read here, because pyarrow ends the process where a footer's column is not as it should be; written here,
because pyarrow cannot put row groups of one file into another.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


#: Gives an integer's new value, from its place (numbers of members and of items in lists) and its old one.
Edit = Callable[[tuple[int, ...], int], int]


def rewrite_struct(data: bytes, position: int, edit: Edit) -> bytes:
    """Return the struct at `position`, which `read_struct` has read, with other integers."""
    return _rewritten(data, position, edit, ())[0]


def list_items(data: bytes, member: int) -> tuple[list[bytes], int, int]:
    """Return the structs in a list of the struct in `data`, and where the list starts and ends.

    Raises ValueError if there is no such list.
    """
    position, field = 0, 0
    while data[position]:
        field, kind, position = _header(data, position, field)
        if field == member and kind == _LIST:
            return _items(data, position)
        if kind not in _BOOLEANS:
            _, position = _value(data, position, kind, 0)
    raise ValueError(f"it has no list {member}")


def write_list(structs: Sequence[bytes]) -> bytes:
    """Return a list of structs."""
    size = len(structs)
    head = bytes([size << 4 | _STRUCT]) if size < 15 else bytes([0xF0 | _STRUCT]) + _to_varint(size)
    return head + b"".join(structs)


def write_integer(value: int) -> bytes:
    """Return an integer."""
    return _to_varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _to_varint(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _header(data: Any, position: int, field: int) -> tuple[int, int, int]:
    """Return a member's number and type, and where its value begins. field: the number before."""
    byte, position = data[position], position + 1
    if byte >> 4:
        return field + (byte >> 4), byte & 15, position
    field, position = _integer(data, position)
    return field, byte & 15, position


def _items(data: bytes, start: int) -> tuple[list[bytes], int, int]:
    byte, position = data[start], start + 1
    length, kind = byte >> 4, byte & 15
    if length == 15:
        length, position = _varint(data, position)
    if length and kind != _STRUCT:
        raise ValueError("a list of it is not one of structs")
    items = []
    for _ in range(length):
        end = _struct(data, position, 0)[1]
        items.append(data[position:end])
        position = end
    return items, start, position


def _rewritten(data: bytes, position: int, edit: Edit, path: tuple[int, ...]) -> tuple[bytes, int]:
    out, field = bytearray(), 0
    while data[position]:
        start = position
        field, kind, position = _header(data, position, field)
        out += data[start:position]
        if kind not in _BOOLEANS:  # whose value is their type
            value, position = _rewritten_value(data, position, kind, edit, (*path, field))
            out += value
    return bytes(out) + b"\0", position + 1


def _rewritten_value(
    data: bytes, position: int, kind: int, edit: Edit, path: tuple[int, ...]
) -> tuple[bytes, int]:
    if kind in _INTEGERS:
        value, end = _integer(data, position)
        return write_integer(edit(path, value)), end
    if kind == _STRUCT:
        return _rewritten(data, position, edit, path)
    if kind != _LIST:
        end = _value(data, position, kind, 0)[1]
        return data[position:end], end
    start, byte, position = position, int(data[position]), position + 1
    length = byte >> 4
    if length == 15:
        length, position = _varint(data, position)
    out = bytearray(data[start:position])
    for number in range(length):
        item, position = _rewritten_value(data, position, byte & 15, edit, (*path, number))
        out += item
    return bytes(out), position


def _struct(data: Any, position: int, depth: int) -> tuple[Struct, int]:
    """Return the struct at `position`, and where it ends. Every table that is read has hundreds of them."""
    found: Struct = {}
    field = 0
    while byte := data[position]:
        kind, position = byte & 15, position + 1
        if byte >> 4:
            field += byte >> 4
        else:
            field, position = _integer(data, position)
        if kind in _INTEGERS:
            found[field], position = _integer(data, position)
        elif kind in _BOOLEANS:
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
    raw = data[position]
    if raw > 127:
        raw, position = _varint(data, position)
        return (raw >> 1) ^ -(raw & 1), position
    return (raw >> 1) ^ -(raw & 1), position + 1


def _varint(data: Any, position: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[position]) > 127:
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if shift > _MAX_SHIFT:
            raise ValueError("a header of it has a number that does not end")
    return value | byte << shift, position + 1
