"""Parquet files of other programs: written with a checksum per page, read with errors that name them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.exchange.files import refuse
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
    """Open a file, of which `read` gives the bytes if it is not on a local disk. Raises CorpusError."""
    with _whole(storage, path):
        at = str(storage.local_path(path)) if storage.is_local else None
        return pq.ParquetFile(at or pa.BufferReader(read()), page_checksum_verification=True)


def read_group(
    storage: Storage, path: str, file: pq.ParquetFile, group: int, names: Sequence[str]
) -> pa.Table:
    """Read columns of a row group. Raises CorpusError."""
    with _whole(storage, path):
        return file.read_row_group(group, list(names), use_threads=False)


@contextlib.contextmanager
def _whole(storage: Storage, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise refuse(storage, path, f"is no whole Parquet file: {error}") from None
