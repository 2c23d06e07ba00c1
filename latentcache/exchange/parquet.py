"""Parquet files of other programs: written with a checksum per page, read with errors that name them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.exchange.damage import read_whole
from latentcache.storage.folder import Storage


def parquet_bytes(table: pa.Table, group_rows: int) -> bytes:
    """Return a table as a file with row groups of so many rows."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, row_group_size=group_rows, compression="zstd", write_page_checksum=True
    )
    return buffer.getvalue()


def open_parquet(
    storage: Storage, path: str, read: Callable[[], bytes | pa.Buffer]
) -> pq.ParquetFile:
    """Open a file, of which `read` gives the bytes if it is not on a local disk; see `read_whole`."""
    with read_whole(storage, path, (pa.ArrowException,), _not_whole):
        at = str(storage.local_path(path)) if storage.is_local else None
        return pq.ParquetFile(at or pa.BufferReader(read()), page_checksum_verification=True)


def read_group(
    storage: Storage, path: str, file: pq.ParquetFile, group: int, names: Sequence[str]
) -> pa.Table:
    """Read columns of a row group; see `read_whole`."""
    with read_whole(storage, path, (pa.ArrowException,), _not_whole):
        return file.read_row_group(group, list(names), use_threads=False)


def _not_whole(error: Exception) -> str:
    return f"is no whole Parquet file: {error}"
