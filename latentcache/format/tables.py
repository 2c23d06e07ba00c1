"""Arrow schemas and paths of a cache's tables: plan, samples, snapshot. Both halves meet here."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.errors import CorruptionError
from latentcache.format import checksum
from latentcache.format.damage import damaged
from latentcache.format.parquet_bounds import footer_bytes, measure, read_row_groups
from latentcache.format.paths import is_planned
from latentcache.format.schemas import check_columns
from latentcache.storage.folder import Storage
from latentcache.storage.spill import Spill

#: A table may take this much memory, and MAX_GROWTH times the bytes of its file more. (Of plans see
#: `objects`: hundreds of clips of one source repeat its caption, which takes no room in the file.)
BASE_BYTES = 1 << 28
MAX_GROWTH = 64
#: Rows decoded at a time, fewer where a repeated value is large.
BATCH_ROWS = 1 << 20
#: Of one value in a list, at least.
VALUE_BYTES = 8

#: Rows that are written together.
GROUP_ROWS = 1 << 20

#: Metadata of a file that is none of its table: Arrow's schema, and the seal.
_NOT_OURS = (b"ARROW:schema", checksum.KEY.encode())


def to_parquet(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Serialise a table, zstd-compressed and sealed; the same rows give the same bytes.

    However they are cut into chunks: these are put together, one group of rows after the other.
    """
    texts = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    buffer = io.BytesIO()
    schema = table.schema.remove_metadata()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        plain = table.replace_schema_metadata()
        for first in range(0, max(1, table.num_rows), GROUP_ROWS):
            writer.write_table(plain.slice(first, GROUP_ROWS).combine_chunks(), GROUP_ROWS)
        writer.add_key_value_metadata({**texts, checksum.KEY: checksum.EMPTY})
    checksum.seal_parquet(buffer)
    return buffer.getvalue()


def from_parquet(
    data: bytes, columns: list[str] | None = None, max_memory: int | None = None
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
        return _decode(data, columns, limit, Spill().put if max_memory else lambda table: table)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def _decode(
    data: bytes, columns: list[str] | None, limit: int, keep: Callable[[pa.Table], pa.Table]
) -> pa.Table:
    """Decode batch by batch: how much a batch takes follows from the pages, not from the footer."""
    groups = read_row_groups(data[-footer_bytes(data, len(data)) :])
    wanted = [c for g in groups for c in g.columns if columns is None or c.path[0] in columns]
    pages = measure(data, wanted)
    _check_size(pages.num_bytes + VALUE_BYTES * pages.list_values, limit)
    batch_rows = max(1, min(BATCH_ROWS, BASE_BYTES // max(1, pages.dictionary_bytes)))
    tables: list[pa.Table] = []
    num_bytes = 0
    with pq.ParquetFile(pa.BufferReader(data)) as file:
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

#: A plan may take this part of the machine's memory, however small its file is.
PART_FOR_A_PLAN = 4


def read_bounded(storage: Storage, path: str, max_bytes: int = MAX_PLAN_BYTES) -> bytes:
    """Read an object that is no larger than `max_bytes`.

    Raises FileNotFoundError, and CorruptionError where it is larger.
    """
    data = storage.read_ranges(path, [(0, max_bytes + 1)])[0]
    if len(data) > max_bytes:
        raise damaged(storage, path, f"has more than {max_bytes} bytes, and no such object has")
    return data


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
    most, max_memory = MAX_TABLE_BYTES, 0
    if is_planned(path):
        most, max_memory = MAX_PLAN_BYTES, _memory_bytes() // PART_FOR_A_PLAN
    data = read_bounded(storage, path, most)
    try:
        return from_parquet(data, columns, max_memory), len(data)
    except ValueError as error:
        raise damaged(storage, path, f"cannot be read ({error})") from error


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
