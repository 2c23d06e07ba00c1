"""Plans are read within the machine's memory: clips of one source repeat what is said of it."""

from __future__ import annotations

import mmap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.errors import CorruptionError
from latentcache.format import tables
from latentcache.format.paths import plan_path, rejected_path, sample_path
from latentcache.format.tables import from_parquet, read_large, to_large_parquet, to_parquet
from latentcache.storage.folder import Storage

#: Of one generation's plan of a bucket.
PLAN = plan_path("000001-0123456789ab", "5x8x8")


@pytest.fixture
def repetitive(monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """20,000 clips of one source with a caption of 1 kB: a few bytes in the file."""
    monkeypatch.setattr(tables, "BASE_BYTES", 1 << 20)
    return pa.table({"caption": ["a long caption " * 70] * 20_000})


def test_a_plan_may_take_far_more_memory_than_its_file(repetitive: pa.Table) -> None:
    data, storage = to_parquet(repetitive), Storage("memory://repetitive")
    assert repetitive.nbytes > 500 * len(data)
    with pytest.raises(ValueError, match="would take more than"):
        from_parquet(data)
    for path in (PLAN, sample_path("5x8x8", 0)):
        storage.write(path, data)
    assert tables.read_table(storage, PLAN).num_rows == 20_000
    with pytest.raises(CorruptionError, match="would take more than"):
        tables.read_table(storage, sample_path("5x8x8", 0))


def test_a_plan_takes_a_part_of_the_machines_memory_at_most(
    repetitive: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_memory_bytes", lambda: repetitive.nbytes)
    storage = Storage("memory://repetitive")
    storage.write(PLAN, to_parquet(repetitive))
    with pytest.raises(CorruptionError, match="would take more than"):
        tables.read_table(storage, PLAN)


def test_the_same_rows_give_the_same_bytes_however_they_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 100)
    numbers = pa.array(range(250))
    whole = pa.table({"number": numbers, "text": numbers.cast(pa.string())})
    for size in (1, 70, 100, 250):
        cut = pa.Table.from_batches(whole.to_batches(max_chunksize=size))
        assert to_parquet(cut) == to_parquet(whole)
    assert from_parquet(to_parquet(whole)).equals(whole)
    file = pq.ParquetFile(pa.BufferReader(to_parquet(whole)))
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [100, 100, 50]
    assert from_parquet(to_parquet(whole.slice(0, 0))).num_rows == 0


def test_a_large_table_is_the_same_bytes_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = pa.array(range(5000))
    table = pa.table({"number": numbers, "text": numbers.cast(pa.string())})
    expected = to_parquet(table, {"about": "rows"})
    monkeypatch.setattr(tables, "KEPT_BYTES", 0)
    monkeypatch.setattr(tables, "PIECE_ROWS", 1024)
    monkeypatch.setattr(tables, "PART_BYTES", len(expected) // 3)
    data = to_large_parquet(table, {"about": "rows"})
    assert isinstance(data, mmap.mmap)
    assert data[:] == expected
    for url in (str(tmp_path), "memory://mapped"):
        storage = Storage(url)
        assert storage.create(PLAN, data)
        assert not storage.create(PLAN, data)
        assert storage.read(PLAN) == expected
        assert isinstance(read_large(storage, PLAN), mmap.mmap)
        assert read_large(storage, PLAN, len(expected))[:] == expected
        with pytest.raises(CorruptionError, match=f"more than {len(expected) - 1} bytes"):
            read_large(storage, PLAN, len(expected) - 1)
        assert tables.read_table(storage, PLAN).equals(table)
        storage.write(PLAN, expected[:-2000])
        with pytest.raises(CorruptionError):
            tables.read_table(storage, PLAN)
        with pytest.raises(FileNotFoundError):
            read_large(storage, "plan/nothing.parquet")


def test_a_table_with_a_column_twice_is_damaged() -> None:
    storage, schema = Storage("memory://twice"), pa.schema([pa.field("a", pa.string())])
    path = rejected_path("000001-0123456789ab")
    storage.write(path, to_parquet(pa.table([pa.array(["x"]), pa.array(["y"])], ["a", "a"])))
    with pytest.raises(CorruptionError, match="a column twice"):
        tables.read_checked(storage, path, schema)
