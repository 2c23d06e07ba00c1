"""Writes Thrift's compact protocol, for footers that no Parquet writer makes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

TRUE, FALSE, INTEGER, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 6, 7, 8, 9, 12


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first."""
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def integer(value: int) -> bytes:
    """Signed: 0, -1, 1, -2, ... are the varints 0, 1, 2, 3, ..."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


def kind_of(value: Any) -> int:
    if isinstance(value, bool):
        return TRUE if value else FALSE
    kinds = {int: INTEGER, float: DOUBLE, bytes: BINARY, list: LIST, dict: STRUCT}
    return kinds[type(value)]


def write_value(value: Any) -> bytes:
    kind = kind_of(value)
    if kind == INTEGER:
        return integer(value)
    if kind == DOUBLE:
        return struct.pack("<d", value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == LIST:
        return write_list(value)
    if kind == STRUCT:
        return write_struct(value)
    return bytes([kind])


def write_list(items: Sequence[Any]) -> bytes:
    """Items are of the first one's kind."""
    kind = kind_of(items[0]) if items else STRUCT
    return list_header(len(items), kind) + b"".join(map(write_value, items))


def list_header(length: int, kind: int) -> bytes:
    return bytes([length << 4 | kind]) if length < 15 else bytes([0xF0 | kind]) + varint(length)


def field_header(delta: int, kind: int) -> bytes:
    """Number a field by its distance to the one before it."""
    return bytes([delta << 4 | kind]) if 0 < delta < 16 else bytes([kind])


def write_struct(fields: Mapping[int, Any]) -> bytes:
    """Fields in the mapping's order, and the stop byte."""
    parts, last = [], 0
    for number, value in fields.items():
        kind, delta = kind_of(value), number - last
        parts += [field_header(delta, kind), b"" if 0 < delta < 16 else integer(number)]
        parts.append(b"" if kind in (TRUE, FALSE) else write_value(value))
        last = number
    return b"".join(parts) + b"\0"
