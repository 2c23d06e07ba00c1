"""Row groups of some Parquet files put into another one as they are: only where they lie is written again.

The column `row` of a clip says its row in the shard, so its page, of one number, is written again, too.
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Sequence

from latentcache.format.parquet_bounds import Column, RowGroup, read_group, read_row_groups
from latentcache.format.thrift import (
    list_items,
    read_struct,
    rewrite_struct,
    write_integer,
    write_list,
)

#: Members of a footer, of a row group, of a column in it and of what is said of the column.
_NUM_ROWS, _GROUPS = 3, 4
_COLUMNS, _GROUP_OFFSET, _COLUMN_OFFSET, _ABOUT = 1, 5, 2, 3
_PAGE_OFFSETS = (9, 10, 11)


def groups_of(footer: bytes) -> list[bytes]:
    """Return what a footer says of each row group, as it is written there. Raises ValueError."""
    read_row_groups(footer)
    return list_items(footer, _GROUPS)[0]


def read_facts(group: bytes) -> RowGroup:
    """Return what `groups_of` found of one row group. Raises ValueError."""
    return read_group(read_struct(group, 0)[0])


def with_row(data: bytes, group: RowGroup, row_chunk: bytes) -> bytes:
    """Return a row group's bytes with another column `row`, which is as long. Raises ValueError."""
    start = min(column.offset for column in group.columns)
    column = _column(group, "row")
    at = column.offset - start
    if column.length != len(row_chunk) or at + column.length > len(data):
        raise ValueError("its row numbers are written in another way than this version writes them")
    return data[:at] + row_chunk + data[at + column.length :]


def moved(group: bytes, by: int) -> bytes:
    """Return what is said of a row group that begins `by` bytes further on."""

    def edit(path: tuple[int, ...], value: int) -> int:
        in_column = len(path) > 2 and path[0] == _COLUMNS
        if path == (_GROUP_OFFSET,) or (in_column and _is_offset(path[2:], value)):
            return value + by
        return value

    return rewrite_struct(group, 0, edit)


def with_groups(footer: bytes, groups: Sequence[bytes]) -> bytes:
    """Return the footer of a file without rows as that of one with these row groups, of a row each."""
    _, start, end = list_items(footer, _GROUPS)
    # The number of rows comes right before the list, and is 0: one byte, and one of the list's header.
    assert read_struct(footer, 0)[0][_NUM_ROWS] == 0
    before, list_header = footer[: start - 2], footer[start - 1 : start]
    return b"".join(
        [before, write_integer(len(groups)), list_header, write_list(groups), footer[end:]]
    )


def _is_offset(path: tuple[int, ...], value: int) -> bool:
    if path == (_COLUMN_OFFSET,):
        return value > 0  # 0 in files of today's writers, who leave it out so
    return path[0] == _ABOUT and len(path) == 2 and path[1] in _PAGE_OFFSETS


def _column(group: RowGroup, name: str) -> Column:
    found = [column for column in group.columns if column.path == (name,)]
    if len(found) != 1:
        raise ValueError(f"a row group of it has no column {name}")
    return found[0]
