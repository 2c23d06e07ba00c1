"""What a Parquet file would take once decoded, from its footer and page headers, before memory is taken.

A footer can say anything, and readers go by the pages: each is decompressed into as many bytes as
its own header says. https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from latentcache.format.thrift import Struct, read_struct

MAGIC = b"PAR1"
#: Length and magic at the end of a file.
TAIL_BYTES = 8
#: Footers take 200 bytes a column of a row group: this is enough for shards of 10,000 clips.
MAX_FOOTER_BYTES = 1 << 22

#: Groups in groups of a schema. A list takes two; columns of tables are lists of lists at most.
MAX_DEPTH = 32

_DICTIONARY_PAGE, _REPEATED = 2, 2


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a row group: its bytes in the file, as the footer gives them.

    path: of names, from the table's column to the leaf. repeated: whether it is of lists.
    """

    path: tuple[str, ...]
    offset: int
    length: int
    num_values: int
    repeated: bool


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group and its columns."""

    num_rows: int
    columns: tuple[Column, ...]


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Bytes that pages decompress to, those of the largest dictionary, and values in lists."""

    num_bytes: int = 0
    dictionary_bytes: int = 0
    list_values: int = 0

    def __add__(self, other: Pages) -> Pages:
        return Pages(
            num_bytes=self.num_bytes + other.num_bytes,
            dictionary_bytes=max(self.dictionary_bytes, other.dictionary_bytes),
            list_values=self.list_values + other.list_values,
        )


def footer_bytes(tail: bytes, num_bytes: int) -> int:
    """Return the length of a file's footer and what follows it. Raises ValueError.

    tail: the last bytes of the file; num_bytes: of the file.
    """
    if len(tail) < TAIL_BYTES or not tail.endswith(MAGIC):
        raise ValueError("the file does not end as a Parquet file does")
    length = int.from_bytes(tail[-TAIL_BYTES:-4], "little") + TAIL_BYTES
    if length > min(num_bytes, MAX_FOOTER_BYTES):
        raise ValueError(f"its footer would have {length} of the file's {num_bytes} bytes")
    return length


def read_row_groups(footer: bytes) -> list[RowGroup]:
    """Read what a footer (of `footer_bytes`) says of the row groups. Raises ValueError."""
    metadata, _ = read_struct(footer, 0)
    try:
        repeated = frozenset(path for path, again in _leaves(metadata[2]) if again)
        return [_row_group(group, repeated) for group in metadata.get(4, [])]
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"its footer is not one of Parquet ({error!r})") from None


def read_group(group: Struct) -> RowGroup:
    """Read what one row group's struct says, without a look at the schema. Raises ValueError."""
    try:
        return _row_group(group, frozenset())
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"a row group of it is not one of Parquet ({error!r})") from None


def _leaves(schema: list[Struct]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield path, and whether it is of lists, of every leaf of a schema in depth-first order."""
    #: Of each open group: members that are still to come, path, whether it is of lists.
    groups: list[tuple[int, tuple[str, ...], bool]] = [(schema[0][5], (), False)]
    for element in schema[1:]:
        while groups[-1][0] == 0:
            groups.pop()
        left, path, repeated = groups.pop()
        groups.append((left - 1, path, repeated))
        here = (*path, element[4].decode())
        again = repeated or element.get(3) == _REPEATED
        if element.get(5):
            groups.append((element[5], here, again))
            if (
                len(groups) > MAX_DEPTH
            ):  # every path is kept, so that memory would grow by the square
                raise ValueError("the schema in its footer is nested deeper than any is")
        else:
            yield here, again


def _row_group(group: Struct, repeated: frozenset[tuple[str, ...]]) -> RowGroup:
    columns = tuple(_column(chunk[3], repeated) for chunk in group[1])
    return RowGroup(num_rows=_number(group[3]), columns=columns)


def _column(facts: Struct, repeated: frozenset[tuple[str, ...]]) -> Column:
    path = tuple(part.decode() for part in facts[3])
    # The dictionary's page, if there is one, comes before those of data. A chunk of no values may have
    # either one or neither, and 0 or nothing for where it would be.
    pages = (_number(facts[9]), _number(facts.get(11, 0)))
    return Column(
        path=path,
        offset=min(filter(None, pages), default=0),
        length=_number(facts[7]),
        num_values=_number(facts[5]),
        repeated=path in repeated,
    )


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} in the place of a number")
    return value


def measure(data: Any, columns: Iterable[Column], start: int = 0) -> Pages:
    """Add up the pages of columns, read as Parquet's readers do. Raises ValueError.

    data: the file's bytes from `start` on. Each byte is looked at once: columns that share any are refused.
    """
    total, end = Pages(), start
    for column in sorted(columns, key=lambda column: column.offset):
        total += _measure(data, column, start)
        if column.offset < end:
            raise ValueError(f"columns of it would share bytes, from {column.offset} to {end}")
        end = column.offset + column.length
    return total


def _measure(data: Any, column: Column, start: int) -> Pages:
    end = column.offset + column.length
    if not start <= column.offset <= end <= start + len(data):
        raise ValueError(f"a column of it would lie at bytes {column.offset} to {end}")
    total = Pages()
    for kind, size, values in _pages(data, column.offset - start, end - start):
        total += Pages(
            num_bytes=size,
            dictionary_bytes=size if kind == _DICTIONARY_PAGE else 0,
            list_values=values if column.repeated else 0,
        )
    return total


def _pages(data: Any, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, decompressed bytes and number of values of each page."""
    while position < end:
        header, position = read_struct(data, position)
        try:
            kind, size, stored = header[1], header[2], header[3]
            values = (header.get(5) or header.get(8) or {}).get(1, 0)
            position += stored
            possible = size >= 0 and stored >= 0 and values >= 0 and position <= end
        except (AttributeError, KeyError, TypeError):
            possible = False
        if not possible:
            raise ValueError("a page of it would lie outside of its column")
        yield kind, size, values
