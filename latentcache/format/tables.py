"""Arrow schemas and paths of a cache's tables: plan, samples, snapshot. Both halves meet here."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.errors import CorruptionError
from latentcache.format import checksum
from latentcache.format.damage import damaged
from latentcache.format.parquet_bounds import TAIL_BYTES, footer_bytes, measure, read_row_groups
from latentcache.format.paths import is_planned
from latentcache.format.schemas import check_columns
from latentcache.storage.folder import Storage
from latentcache.storage.spill import KEPT_BYTES, Data, Spill, gathered, written

Bytes = TypeVar("Bytes", bytes, Data)

#: A table may take this much memory, and MAX_GROWTH times the bytes of its file more. (Of plans see
#: `objects`: hundreds of clips of one source repeat its caption, which takes no room in the file.)
BASE_BYTES = 1 << 28
MAX_GROWTH = 64
#: Rows decoded at a time, fewer where a repeated value is large, or where they go to a temporary file.
BATCH_ROWS = 1 << 20
#: Of one value in a list, at least.
VALUE_BYTES = 8

#: Rows that are written together.
GROUP_ROWS = 1 << 20
#: Rows whose texts and lists are put together: a multiple of what Arrow's writer takes at a time, so that
#: the bytes of texts are those of one piece.
PIECE_ROWS = 1 << 16

#: Metadata of a file that is none of its table: Arrow's schema, and the seal.
_NOT_OURS = (b"ARROW:schema", checksum.KEY.encode())


def to_parquet(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Serialise a table, zstd-compressed and sealed; the same rows give the same bytes.

    However they are cut into chunks: these are put together, one group of rows after the other.
    """
    buffer = io.BytesIO()
    _write(table, metadata or {}, buffer)
    with buffer.getbuffer() as data:
        checksum.seal_parquet(data)
    return buffer.getvalue()


def to_large_parquet(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> Data:
    """Serialise a table as `to_parquet` does; a large one to a temporary file. Raises MachineError."""
    if table.nbytes <= KEPT_BYTES:
        return to_parquet(table, metadata)
    data = written(lambda file: _write(table, metadata or {}, file))
    checksum.seal_parquet(data)
    return data


def _write(table: pa.Table, metadata: Mapping[str, Any], file: IO[bytes]) -> None:
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    schema = table.schema.remove_metadata()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        plain = table.replace_schema_metadata()
        for first in range(0, max(1, table.num_rows), GROUP_ROWS):
            writer.write_table(_recut(plain.slice(first, GROUP_ROWS)), GROUP_ROWS)
        writer.add_key_value_metadata({**texts, checksum.KEY: checksum.EMPTY})


def _recut(group: pa.Table) -> pa.Table:
    """Return a group of rows in chunks that follow from its rows, since the bytes follow from them.

    Texts and lists, which are what is large, are in memory piece by piece: Arrow puts no more than 2 GiB of
    them together.
    """
    spill = Spill()

    def column(values: pa.ChunkedArray) -> pa.ChunkedArray:
        if not _has_any_length(values.type):
            return values.combine_chunks()
        starts = range(0, max(1, len(values)), PIECE_ROWS)
        pieces = (values.slice(start, PIECE_ROWS).combine_chunks() for start in starts)
        return spill.joined(pieces, values.type)

    return pa.table([column(values) for values in group.columns], schema=group.schema)


def _has_any_length(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_nested(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def from_parquet(
    data: Data, columns: list[str] | None = None, max_memory: int | None = None
) -> pa.Table:
    """Read what `to_parquet` wrote, or some of its columns, with its metadata.

    Raises ValueError where the bytes are not those that were written, or would take far more memory
    than they do themselves, or more than `max_memory` if that is larger. A table that may take so much goes
    to a temporary file: see `Spill`.

    Only in this thread: pq.read_table leaves the bytes to a thread of Arrow's, which may let go of
    them while the interpreter shuts down, and then aborts the process.
    """
    checksum.check(data)
    try:
        limit = max(BASE_BYTES + MAX_GROWTH * len(data), max_memory or 0)
        if max_memory:
            return _decode(data, columns, limit, PIECE_ROWS, Spill().put)
        return _decode(data, columns, limit, BATCH_ROWS, lambda table: table)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def _decode(
    data: Data,
    columns: list[str] | None,
    limit: int,
    batch_rows: int,
    keep: Callable[[pa.Table], pa.Table],
) -> pa.Table:
    """Decode batch by batch: how much a batch takes follows from the pages, not from the footer."""
    groups = read_row_groups(data[-footer_bytes(data[-TAIL_BYTES:], len(data)) :])
    wanted = [c for g in groups for c in g.columns if columns is None or c.path[0] in columns]
    pages = measure(data, wanted)
    _check_size(pages.num_bytes + VALUE_BYTES * pages.list_values, limit)
    batch_rows = max(1, min(batch_rows, BASE_BYTES // max(1, pages.dictionary_bytes)))
    tables: list[pa.Table] = []
    num_bytes = 0
    with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data))) as file:
        schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise ValueError("it has a column twice")
        names = schema.names if columns is None else [n for n in columns if n in schema.names]
        kept = pa.schema([schema.field(name) for name in names])  # in the order of the batches
        for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            batch.validate(full=True)  # such as text that is no UTF-8
            num_bytes += batch.nbytes
            _check_size(num_bytes, limit)
            tables.append(keep(pa.Table.from_batches([batch], kept)))
        texts = {k: v for k, v in file.metadata.metadata.items() if k not in _NOT_OURS}
    table = pa.concat_tables(tables) if tables else kept.empty_table()
    table = table.replace_schema_metadata(texts or None)
    if table.num_rows != sum(group.num_rows for group in groups):
        raise ValueError(f"it has {table.num_rows} rows, and its footer says another number")
    return table


def _check_size(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise ValueError(f"it would take more than {limit} bytes of memory, which no table does")


#: Of an object: the plan of 10 million clips takes 0.5 GB, the sample table of 64 clips 10 kB and their
#: captions, and the snapshot of a million shards 10 MB.
MAX_PLAN_BYTES = 1 << 31

MAX_TABLE_BYTES = 1 << 28

#: Bytes of an object that are in memory at a time, if it is read part by part.
PART_BYTES = 1 << 24

#: A plan may take this part of the machine's memory, however small its file is.
PART_FOR_A_PLAN = 4


def read_bounded(storage: Storage, path: str, max_bytes: int = MAX_PLAN_BYTES) -> bytes:
    """Read an object that is no larger than `max_bytes`.

    Raises FileNotFoundError, and CorruptionError where it is larger.
    """
    data = storage.read_ranges(path, [(0, max_bytes + 1)])[0]
    _check_length(storage, path, data, max_bytes)
    return data


def read_sealed(storage: Storage, path: str, max_bytes: int = MAX_PLAN_BYTES) -> bytes:
    """Read an object as `read_bounded` does; one whose CRC32C does not fit is read once more.

    A connection that was cut gives fewer bytes, and no error. What is damaged on storage stays so, and is
    for the caller to refuse.
    """
    return _read_again(lambda: read_bounded(storage, path, max_bytes))


def _read_again(read: Callable[[], Bytes]) -> Bytes:
    data = read()
    try:
        checksum.check(data)
    except ValueError:
        return read()
    return data


def read_large(storage: Storage, path: str, max_bytes: int = MAX_PLAN_BYTES) -> Data:
    """Read an object as `read_bounded` does; of a large one, a part at a time is in memory."""

    def parts() -> Iterator[bytes]:
        for start in range(0, max_bytes + 1, PART_BYTES):
            wanted = min(PART_BYTES, max_bytes + 1 - start)
            part = storage.read_ranges(path, [(start, wanted)])[0]
            yield part
            if len(part) < wanted:
                return

    data = gathered(parts())
    _check_length(storage, path, data, max_bytes)
    return data


def _check_length(storage: Storage, path: str, data: Data, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise damaged(storage, path, f"has more than {max_bytes} bytes, and no such object has")


def read_table(storage: Storage, path: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table of the cache, or some of its columns.

    Raises FileNotFoundError, and CorruptionError where it cannot be read.
    """
    return read_sized_table(storage, path, columns)[0]


def read_checked(storage: Storage, path: str, schema: pa.Schema) -> pa.Table:
    """Read a table that a generation says is there, with a schema's columns. Raises CorruptionError."""
    try:
        table = read_table(storage, path)
        check_columns(table, schema)
    except FileNotFoundError:
        raise damaged(storage, path, "is missing") from None
    except CorruptionError:
        raise
    except ValueError as error:
        raise damaged(storage, path, f"is not what it should be: {error}") from error
    return table


def read_sized_table(
    storage: Storage, path: str, columns: list[str] | None = None
) -> tuple[pa.Table, int]:
    """Read a table as `read_table` does; returns the bytes of its file, too."""
    if is_planned(path):
        max_memory = _memory_bytes() // PART_FOR_A_PLAN
        data = _read_again(lambda: read_large(storage, path))
    else:
        max_memory = 0
        data = read_sealed(storage, path, MAX_TABLE_BYTES)
    try:
        return from_parquet(data, columns, max_memory), len(data)
    except ValueError as error:
        raise damaged(storage, path, f"cannot be read ({error})") from error


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
