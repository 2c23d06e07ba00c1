"""What a Parquet file would take: as its writer says, and bounded whatever its footer says."""

from __future__ import annotations

import functools
import io
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.format.parquet_bounds import (
    MAGIC,
    MAX_FOOTER_BYTES,
    TAIL_BYTES,
    Column,
    Pages,
    RowGroup,
    footer_bytes,
    measure,
    read_row_groups,
)
from latentcache.format.tables import from_parquet, to_parquet
from tests.tools import compact

#: What a footer may take in memory, in its own bytes: a struct of one byte is a dict.
GROWTH = 200
TYPES = [
    pa.bool_(),
    pa.int32(),
    pa.float32(),
    pa.string(),
    pa.binary(2),
    pa.list_(pa.bool_()),
    pa.list_(pa.int64()),
    pa.list_(pa.list_(pa.string())),
    pa.struct([("a", pa.bool_()), ("b", pa.list_(pa.int8()))]),
]
VALUES = [True, 7, 0.5, "text", b"ab", [True, False], [1, 2, 3], [["a"], [], ["b", "c"]]]
VALUES = [*VALUES, {"a": True, "b": [1]}]


def written(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def footer_of(data: bytes) -> bytes:
    return data[-footer_bytes(data, len(data)) :]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Columns of every type, with nulls, or with no rows at all."""
    num_rows = draw(st.integers(0, 20))
    picked = draw(st.lists(st.integers(0, len(TYPES) - 1), min_size=1, max_size=4))
    columns = {}
    for number, at in enumerate(picked):
        values = st.lists(st.sampled_from([None, VALUES[at]]), min_size=num_rows, max_size=num_rows)
        columns[f"c{number}"] = pa.array(draw(values), TYPES[at])
    return pa.table(columns)


# Sound files


OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "zstd", "snappy"]),
        "use_dictionary": st.booleans(),
        "row_group_size": st.sampled_from([1, 7, 1000]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "data_page_size": st.sampled_from([1, 1 << 20]),
    }
)


@pytest.mark.slow
@given(tables(), OPTIONS)
def test_a_footer_says_what_pyarrow_reads_in_it(table: pa.Table, options: dict[str, Any]) -> None:
    data = written(table, **options)
    metadata = pq.read_metadata(io.BytesIO(data))
    groups = read_row_groups(footer_of(data))
    assert [g.num_rows for g in groups] == [
        metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)
    ]
    for n, group in enumerate(groups):
        for m, column in enumerate(group.columns):
            expected = metadata.row_group(n).column(m)
            assert ".".join(column.path) == expected.path_in_schema
            assert (column.length, column.num_values) == (
                expected.total_compressed_size,
                expected.num_values,
            )
            assert column.repeated == (metadata.schema.column(m).max_repetition_level > 0)


@pytest.mark.slow
@given(tables(), OPTIONS)
def test_pages_are_what_the_writer_counted(table: pa.Table, options: dict[str, Any]) -> None:
    """The writer's count is of the pages and of their headers."""
    data = written(table, **options)
    metadata = pq.read_metadata(io.BytesIO(data))
    for n, group in enumerate(read_row_groups(footer_of(data))):
        for m, column in enumerate(group.columns):
            pages, counted = measure(data, [column]), metadata.row_group(n).column(m)
            assert pages.num_bytes <= counted.total_uncompressed_size
            assert pages.dictionary_bytes <= pages.num_bytes
            assert pages.list_values == (column.num_values if column.repeated else 0)


def test_a_plain_column_takes_its_values() -> None:
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    table = pa.table([pa.array(range(1000))], schema=schema)
    data = written(table, use_dictionary=False, compression="zstd", data_page_size=1)
    (group,) = read_row_groups(footer_of(data))
    assert measure(data, group.columns) == Pages(num_bytes=8000)
    (column,) = group.columns
    window = memoryview(data)[column.offset : column.offset + column.length]
    assert measure(window, group.columns, column.offset) == Pages(num_bytes=8000)


@pytest.mark.slow
@given(tables())
def test_every_table_that_is_written_is_read(table: pa.Table) -> None:
    assert from_parquet(to_parquet(table)).equals(table)


# Ends of files


@given(st.binary(max_size=40), st.integers(0, 2**63))
def test_an_end_gives_a_footer_in_the_file_or_value_error(tail: bytes, num_bytes: int) -> None:
    for end in (tail, tail + MAGIC):
        try:
            length = footer_bytes(end, num_bytes)
        except ValueError:
            continue
        assert TAIL_BYTES <= length <= min(num_bytes, MAX_FOOTER_BYTES)


@pytest.mark.parametrize("length", [93, 2**31, 2**32 - 1])
def test_a_footer_longer_than_the_file_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"would have {length + 8} of the file's 100 bytes"):
        footer_bytes(length.to_bytes(4, "little") + MAGIC, 100)


def test_a_footer_is_bounded_in_a_file_of_any_size() -> None:
    most = MAX_FOOTER_BYTES - TAIL_BYTES
    assert footer_bytes(most.to_bytes(4, "little") + MAGIC, 2**62) == MAX_FOOTER_BYTES
    with pytest.raises(ValueError, match="its footer would have"):
        footer_bytes((most + 1).to_bytes(4, "little") + MAGIC, 2**62)


@functools.cache
def sound() -> bytes:
    """A small file with dictionary pages, lists and two row groups."""
    table = pa.table(
        {name: pa.array([VALUES[n], None], TYPES[n]) for n, name in enumerate("abcdefghi")}
    )
    return written(table, row_group_size=1)


def test_a_footer_cut_off_anywhere_is_refused() -> None:
    footer = footer_of(written(pa.table({"a": [1], "b": [["text"]]})))[:-TAIL_BYTES]
    for length in range(len(footer)):
        with pytest.raises(ValueError, match="of it"):
            read_row_groups(footer[:length])


@pytest.mark.slow
@given(st.data())
def test_changed_bytes_give_value_error_or_numbers(data: st.DataObject) -> None:
    changed = bytearray(sound())
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(changed) - 1))
        changed[where] = data.draw(st.integers(0, 255))
    check_numbers(bytes(changed))


def check_numbers(data: bytes) -> None:
    """Read and measure; nothing but ValueError comes out, or plain numbers."""
    try:
        groups = read_row_groups(footer_of(data))
        for group in groups:
            pages = measure(data, group.columns)
            assert min(pages.num_bytes, pages.dictionary_bytes, pages.list_values) >= 0
            numbers = [(c.offset, c.length, c.num_values) for c in group.columns]
            assert all(isinstance(n, int) for each in numbers for n in each)
            assert isinstance(group.num_rows, int)
    except ValueError:
        pass


# Footers that no writer makes


def leaf(name: bytes = b"a", repetition: int = 0) -> dict[int, Any]:
    return {1: 1, 3: repetition, 4: name}


def group_of(num_children: int, name: bytes = b"g") -> dict[int, Any]:
    return {4: name, 5: num_children}


def chunk(offset: int = 4, length: int = 10, path: tuple[bytes, ...] = (b"a",)) -> dict[int, Any]:
    return {3: {3: list(path), 5: 1, 7: length, 9: offset}}


def footer(schema: list[Any], *groups: list[Any]) -> bytes:
    return compact.write_struct({2: schema, 4: [{1: list(chunks), 3: 1} for chunks in groups]})


def test_the_footers_of_these_tests_are_read() -> None:
    column = Column(path=("a",), offset=4, length=10, num_values=1, repeated=True)
    assert read_row_groups(footer([group_of(1), leaf(repetition=2)], [chunk()])) == [
        RowGroup(num_rows=1, columns=(column,))
    ]


ANYTHING = [
    0,
    -1,
    2**62,
    True,
    b"",
    b"a",
    b"\xff",
    [],
    [1],
    [b"a"],
    [{}],
    [{3: 1}],
    {},
    {1: 1},
    0.5,
]
#: The structs of a footer, by where they are in it; the last member is the one that is changed.
PLACES: list[tuple[int, ...]] = [(), (2, 0), (2, 1), (4, 0), (4, 0, 1, 0), (4, 0, 1, 0, 3)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 9, 11])
def test_members_of_other_types_give_value_error_or_numbers(
    place: tuple[int, ...], number: int
) -> None:
    for value in (None, *ANYTHING):  # None: the member is not there
        whole: Any = {2: [group_of(1), leaf()], 4: [{1: [chunk()], 3: 1}]}
        target = functools.reduce(lambda inside, key: inside[key], place, whole)
        target.pop(number, None)
        if value is not None:
            target[number] = value
        text = compact.write_struct(whole)
        check_numbers(MAGIC + text + len(text).to_bytes(4, "little") + MAGIC)


@pytest.fixture(autouse=True)
def _no_tracing_after() -> Iterator[None]:
    yield
    tracemalloc.stop()


def traced_peak() -> int:
    """The most bytes that were allocated at once since tracing began."""
    return tracemalloc.get_traced_memory()[1]


@pytest.mark.parametrize("children", [1, 2], ids=["closed at the end", "never closed"])
def test_a_schema_nested_without_end_is_refused_before_it_takes_memory(children: int) -> None:
    data = footer([group_of(children)] * 5_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="nested deeper than any is"):
        read_row_groups(data)
    assert traced_peak() < GROWTH * len(data)


@pytest.mark.parametrize("repetition", [0, 2])
def test_a_wide_schema_takes_memory_by_its_length(repetition: int) -> None:
    data = footer([group_of(5_000)] + [leaf(b"a", repetition)] * 5_000)
    tracemalloc.start()
    assert read_row_groups(data) == []
    assert traced_peak() < GROWTH * len(data)


def test_columns_that_share_bytes_are_refused() -> None:
    """Each would be gone through page by page: in all, more pages than bytes."""
    data = written(pa.table({"a": [1], "b": [2]}), compression="none")
    first, second = read_row_groups(footer_of(data))[0].columns
    assert measure(data, [second, first]) == measure(data, [first, second])
    for columns in ([first, first], [first, second, second], [second, first, second]):
        with pytest.raises(ValueError, match="share bytes"):
            measure(data, columns)


@pytest.mark.long
def test_many_columns_of_lists_are_looked_up() -> None:
    """Searched for one by one, those of this footer take hours."""
    names = [b"%d" % n for n in range(MAX_FOOTER_BYTES // 32)]
    data = footer(
        [group_of(len(names)), *(leaf(name, 2) for name in names)],
        [chunk(4, 0, (name,)) for name in names],
    )
    assert len(data) < MAX_FOOTER_BYTES
    (group,) = read_row_groups(data)
    assert [column.repeated for column in group.columns] == [True] * len(names)


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_a_column_beyond_the_file_is_refused(offset: int, length: int) -> None:
    data = sound()
    (group,) = read_row_groups(footer([group_of(1), leaf()], [chunk(offset or 1, length)]))
    if length == 0 or (4 <= offset <= offset + length <= len(data)):
        return
    with pytest.raises(ValueError, match=r"would lie (at bytes|outside)"):
        measure(data, group.columns)


@pytest.mark.parametrize("member", [{2: -1, 3: 8}, {2: 8, 3: -1}, {2: 8, 3: 2**40}, {2: b"", 3: 8}])
def test_a_page_of_impossible_size_is_refused(member: dict[int, Any]) -> None:
    header = compact.write_struct({1: 0, **member, 5: {1: 1}})
    column = Column(path=("a",), offset=0, length=len(header) + 8, num_values=1, repeated=True)
    with pytest.raises(ValueError, match="a page of it would lie outside"):
        measure(header + bytes(8), [column])


@given(st.binary(max_size=100))
def test_random_pages_give_value_error_or_numbers(data: bytes) -> None:
    column = Column(path=("a",), offset=0, length=len(data), num_values=1, repeated=True)
    try:
        pages = measure(data, [column])
    except ValueError:
        return
    assert min(pages.num_bytes, pages.dictionary_bytes, pages.list_values) >= 0
