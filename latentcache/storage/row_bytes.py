"""The bytes that a row of a Parquet or Arrow file holds: read with its row group, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.core.lru import Lru
from latentcache.errors import ClipError
from latentcache.redaction import printable
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.parts import TableRow
from latentcache.storage.source_files import file_facts, open_source
from latentcache.storage.urls import redact_url, suffix_of

#: The suffix of files that `datasets.save_to_disk` writes.
ARROW = "arrow"
_FILE_MAGIC = b"ARROW1"
#: A row group of so many bytes is kept for the rows beside; of a larger one each row is looked for.
_MAX_KEPT_BYTES = 256 << 20
_FEW_ROWS = 8
_BLOCK_BYTES = 1 << 16
#: The last row group that was read.
_groups: Lru[tuple[Any, ...], pa.ChunkedArray] = Lru(1)


def holds_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column holds files: bytes, or structs that have them, as Hugging Face's tables do."""
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return names.count("bytes") == 1 and is_binary(kind.field("bytes").type)
    return is_binary(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Tell whether a column's values are bytes."""
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in kinds)


def leaf_of(schema: pa.Schema, column: str) -> str:
    """Return what Parquet calls the bytes in a column."""
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def bytes_in(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the bytes of a column, be it of bytes or of structs that have them."""
    if not pa.types.is_struct(column.type):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([bytes_in(chunk) for chunk in column.chunks], pa.binary())
    fields = [column.type.field(i).name for i in range(column.type.num_fields)]
    return column.flatten()[fields.index("bytes")].cast(pa.binary())


def arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file on this machine, mapped and not read. Raises ArrowException."""
    with pa.memory_map(path) as file:
        is_stream = file.read(len(_FILE_MAGIC)) != _FILE_MAGIC
        file.seek(0)
        if is_stream:
            yield from pa.ipc.open_stream(file)
        else:
            found = pa.ipc.open_file(file)
            yield from map(found.get_batch, range(found.num_record_batches))


def read_row(row: TableRow, options: Mapping[str, Any] | None) -> bytes:
    """Return a row's bytes. Raises ClipError where the table has none, FileNotFoundError, StorageError."""
    read = _arrow_value if suffix_of(row.file) == ARROW else _parquet_value
    try:
        value = read(row, options)
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, KeyError) as error:
        raise ClipError("corrupt", f"{_where(row)} cannot be read: {_line(error)}") from None
    if value is None:
        raise ClipError("unreadable", f"{_where(row)} is empty")
    return value


def _parquet_value(row: TableRow, options: Mapping[str, Any] | None) -> bytes | None:
    found = file_facts(row.file, options)
    stamp = tuple(str(found.get(name)) for name in ("size", "mtime_ns", "ETag", "LastModified"))
    with open_source(row.file, options, for_parts=True, block_bytes=_BLOCK_BYTES) as file:
        parquet = pq.ParquetFile(file)
        facts = parquet.metadata
        sizes = [facts.row_group(g).num_rows for g in range(facts.num_row_groups)]
        group, at = _place(row, sizes)
        leaf = leaf_of(parquet.schema_arrow, row.column)
        if _group_bytes(parquet, group, leaf) > _MAX_KEPT_BYTES:
            return _found(parquet, group, leaf, at)
        values = _groups.get_or_make(
            (row.file, stamp, row.column, group),
            lambda: bytes_in(parquet.read_row_group(group, columns=[leaf])[row.column]),
        )
    return cast("bytes | None", values[at].as_py())


def _group_bytes(parquet: pq.ParquetFile, group: int, leaf: str) -> int:
    found = parquet.metadata.row_group(group)
    columns = [found.column(i) for i in range(found.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == leaf)


def _found(parquet: pq.ParquetFile, group: int, leaf: str, at: int) -> bytes | None:
    """Look for a row in a large row group without holding all of it."""
    batches = parquet.iter_batches(_FEW_ROWS, row_groups=[group], columns=[leaf])
    for batch in batches:
        if at < batch.num_rows:
            return cast("bytes | None", bytes_in(batch.column(0))[at].as_py())
        at -= batch.num_rows
    raise KeyError(f"row group {group} has fewer rows than its header says")


def _place(row: TableRow, sizes: Sequence[int]) -> tuple[int, int]:
    """Return the row group of a row, and the row's number in it."""
    at = row.row
    for group, size in enumerate(sizes):
        if at < size:
            return group, at
        at -= size
    raise _gone(row, sum(sizes))


def _arrow_value(row: TableRow, options: Mapping[str, Any] | None) -> bytes | None:
    file_facts(row.file, options)  # says it where the file is not there
    at = row.row
    for batch in arrow_batches(open_filesystem(row.file, options)[1]):
        if at < batch.num_rows:
            return cast("bytes | None", bytes_in(batch.column(row.column))[at].as_py())
        at -= batch.num_rows
    raise _gone(row, row.row - at)


def _gone(row: TableRow, num_rows: int) -> ClipError:
    return ClipError(
        "source_changed",
        f"{_where(row)} is not there: the file has {num_rows} rows, so it was replaced since it was listed",
    )


def _where(row: TableRow) -> str:
    return f"{redact_url(row.file)}: row {row.row + 1} of {printable(row.column)!r}"


def _line(error: BaseException) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])
