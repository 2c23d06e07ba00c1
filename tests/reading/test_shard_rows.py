"""The ok rows of a sample table: numbered without the failed ones, with their places and columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core.records import ChunkRef
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.reading.shard_rows import ShardRows

SCHEMA = SAMPLE_SCHEMA.append(pa.field("score", pa.float64())).append(
    pa.field("tags", pa.list_(pa.string()))
)


def row_of(row: int, ok: bool) -> dict[str, Any]:
    """A row whose values all follow from its number."""
    stored = {"offset": 100 * row, "length": 100, "crc32c": 2**32 - 1 - row}
    return {
        "key": f"k{row}",
        "source": f"v{row}.mp4",
        "row": row,
        "status": "ok" if ok else "failed",
        "reason": None if ok else "corrupt",
        "caption": None if row % 3 == 0 else f"caption {row}",
        "score": row / 2,
        "tags": ["a"] * row,
        **(stored if ok else {}),
    }


def rows_of(oks: list[bool], chunks: int = 1) -> ShardRows:
    """Of a table in so many pieces, as one that was concatenated is."""
    table = pa.Table.from_pylist([row_of(n, ok) for n, ok in enumerate(oks)], schema=SCHEMA)
    size = max(1, -(-len(oks) // chunks))
    pieces = [table.slice(start, size) for start in range(0, len(oks), size)]
    return ShardRows("5x8x8", 7, pa.concat_tables([table.slice(0, 0), *pieces]))


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_ok_rows_are_numbered_in_row_order(oks: list[bool], chunks: int) -> None:
    rows = rows_of(oks, chunks)
    expected = [row_of(n, ok) for n, ok in enumerate(oks) if ok]
    places = ("row", "offset", "length", "crc32c")
    assert len(rows) == len(expected)
    assert rows.chunks == [ChunkRef(**{name: row[name] for name in places}) for row in expected]
    everywhere = range(len(rows))
    for name in ("key", "caption", "score", "tags"):
        assert rows.column(name, everywhere) == [row[name] for row in expected]


def test_a_column_is_read_at_positions_in_any_order() -> None:
    rows = rows_of([True, False, True, True])
    assert rows.column("key", [2, 0, 2]) == ["k3", "k0", "k3"]
    assert rows.column("caption", [1, 0]) == ["caption 2", None]
    assert rows.column("key", []) == []


def test_kept_columns_are_those_that_the_cache_does_not_write() -> None:
    assert rows_of([True]).kept == ["score", "tags"]
    assert ShardRows("b", 0, SAMPLE_SCHEMA.empty_table()).kept == []


def test_the_shard_is_named_and_may_hold_nothing() -> None:
    rows = rows_of([False, False])
    assert (rows.bucket, rows.shard, len(rows), rows.chunks) == ("5x8x8", 7, 0, [])


def test_a_column_that_only_other_shards_have_kept_is_null() -> None:
    rows = rows_of([True, False, True])
    assert rows.column("elsewhere", [0, 1]) == [None, None]
