"""Parquet: one file a shard, one row group a clip, for plain pyarrow. Failed rows are absent.

Columns: `latents`, a fixed-size list of the stored type (bfloat16 as two little-endian bytes), and
`row`. The sample's shape and dtype are in the schema's metadata. Byte stream split, then zstd:
0.58 to 0.61 of real bfloat16 latents, decoding at 0.5 GB/s a core; nullable lists decode at 0.37,
a plain binary column at 1.0 with a ratio of 0.68 to 0.74 (pyarrow 26).
"""

from __future__ import annotations

import bisect
import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.lru import Lru
from latentcache.core.records import ChunkRef
from latentcache.errors import StorageError
from latentcache.format.parquet_bounds import (
    MAGIC,
    TAIL_BYTES,
    RowGroup,
    footer_bytes,
    measure,
    read_row_groups,
)
from latentcache.format.shards import parquet_pack
from latentcache.format.shards.protocol import ArrayLayout, EncodedShard, StoredChunk
from latentcache.format.shards.ranges import (
    MISSING,
    ShardObject,
    check_rows,
    damaged,
    read_chunks,
    read_whole,
)
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage
from latentcache.storage.seekable import SeekableFile

#: The footer of a file of 64 clips takes 12 kB; one request reads it unless a shard is far larger.
FOOTER_GUESS_BYTES = 1 << 16
#: Footers kept in memory; one of 64 row groups takes about 100 kB once parsed.
MAX_FOOTERS = 256
#: What a page holds beside its values: lengths and levels, run-length coded.
PAGE_OVERHEAD_BYTES = 4096
INTEGER_BYTES = 4


class ParquetFormat:
    """Files `FOLDER/BUCKET/SHARD.parquet`. Keeps the footers of the files that were read last."""

    def __init__(self, max_footers: int = MAX_FOOTERS) -> None:
        self._footers: Lru[tuple[str, str], _Footer] = Lru(max_footers)

    def metadata(self, layouts: Sequence[ArrayLayout]) -> Mapping[str, bytes]:  # noqa: ARG002
        """Return nothing: the files describe themselves."""
        return {}

    def path(self, layout: ArrayLayout, index: int) -> str:
        """Return `FOLDER/BUCKET/INDEX.parquet`."""
        return f"{layout.folder}/{layout.bucket.name}/{index:06d}.parquet"

    def tail_bytes(self, layout: ArrayLayout, data: bytes) -> int:  # noqa: ARG002
        """Return the length of the footer, of its length and of the magic."""
        return footer_bytes(data, len(data))

    def decode(self, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array) -> None:
        """Decode one row group of a whole file."""
        block = memoryview(data)[chunk.offset : chunk.offset + chunk.length]
        try:
            footer = _parse(data[-footer_bytes(data, len(data)) :])
            _decode(layout, footer, chunk, block, out)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(str(error)) from error

    def encode_shard(
        self, layout: ArrayLayout, index: int, rows: Sequence[Array | None]
    ) -> EncodedShard:
        """Write one row group a clip; where all failed, the file has none."""
        check_rows(layout, index, rows, numpy_dtype(layout.dtype))
        schema, buffer = _schema(layout), io.BytesIO()
        with pq.ParquetWriter(buffer, schema, **_writer_options(layout)) as writer:
            for row, array in enumerate(rows):
                if array is not None:
                    columns = [_to_arrow(layout, layout.whole(array)), pa.array([row], pa.int32())]
                    writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        data = buffer.getvalue()
        stored = [row for row, array in enumerate(rows) if array is not None]
        chunks: list[ChunkRef | None] = [None] * len(rows)
        footer = _parse(data[-footer_bytes(data, len(data)) :])
        for (offset, length), row in zip(footer.extents, stored, strict=True):
            crc = google_crc32c.value(data[offset : offset + length])
            chunks[row] = ChunkRef(row=row, offset=offset, length=length, crc32c=crc)
        tail = footer_bytes(data, len(data))
        return EncodedShard(self.path(layout, index), data[:-tail], data[-tail:], chunks)

    def take(
        self, storage: Storage, layout: ArrayLayout, index: int, chunks: Sequence[ChunkRef]
    ) -> list[StoredChunk]:
        """Read row groups as they are, and what the footer says of them."""
        path = self.path(layout, index)
        shard = ShardObject(storage=storage, layout=layout, index=index, path=path)
        found: dict[int, StoredChunk] = {}
        for n, block in read_chunks(shard, chunks):
            footer = self._footer(storage, layout, index, path, chunks[n])
            group = footer.find(chunks[n])
            if group is None:
                raise shard.damaged(chunks[n].row, "its footer has no row group there")
            found[n] = StoredChunk(bytes(block), footer.facts[group])
        return [found[n] for n in range(len(chunks))]

    def pack(
        self, layout: ArrayLayout, index: int, chunks: Sequence[StoredChunk | None]
    ) -> EncodedShard:
        """Put row groups behind each other, and write the footer."""
        parts, groups, position = [MAGIC], [], len(MAGIC)
        refs: list[ChunkRef | None] = [None] * len(chunks)
        for row, chunk in enumerate(chunks):
            if chunk is None:
                continue
            facts = parquet_pack.read_facts(chunk.facts)
            data = parquet_pack.with_row(chunk.data, facts, _row_chunk(layout, row))
            groups.append(parquet_pack.moved(chunk.facts, position - _extent(facts)[0]))
            crc = google_crc32c.value(data)
            refs[row] = ChunkRef(row=row, offset=position, length=len(data), crc32c=crc)
            parts.append(data)
            position += len(data)
        empty = self.encode_shard(layout, index, [None]).tail
        footer = parquet_pack.with_groups(empty[:-TAIL_BYTES], groups)
        tail = footer + len(footer).to_bytes(4, "little") + MAGIC
        return EncodedShard(self.path(layout, index), b"".join(parts), tail, refs)

    def read(
        self,
        storage: Storage,
        layout: ArrayLayout,
        index: int,
        chunks: Sequence[ChunkRef],
        out: Sequence[Array],
        *,
        check: bool = True,
        disk: DiskCache | None = None,
    ) -> None:
        """Read the row groups of `chunks`, after the footer at first, which is kept only in memory."""
        path = self.path(layout, index)
        shard = ShardObject(
            storage=storage, layout=layout, index=index, path=path, check=check, disk=disk
        )
        for n, block in read_chunks(shard, chunks):
            footer = self._footer(storage, layout, index, path, chunks[n])
            try:
                _decode(layout, footer, chunks[n], block, out[n])
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                what = f"its row group cannot be read ({error})"
                raise shard.damaged(chunks[n].row, what) from error

    def read_frames(
        self,
        storage: Storage,
        layout: ArrayLayout,
        index: int,
        chunks: Sequence[ChunkRef],
        picks: Sequence[Sequence[int] | None],
        out: Sequence[Array],
        *,
        check: bool = True,
        disk: DiskCache | None = None,
    ) -> None:
        """Read chunks whole, for they have no pieces, and copy the picked frames."""
        where, numbers = (storage, layout, index), range(len(chunks))
        read_whole(self, *where, chunks, picks, out, numbers, check=check, disk=disk)

    def _footer(
        self, storage: Storage, layout: ArrayLayout, index: int, path: str, chunk: ChunkRef
    ) -> _Footer:
        key = (storage.absolute_url, path)
        footer = self._footers.get(key)
        if footer is not None and footer.find(chunk) is not None:
            return footer  # else the file was not read yet
        try:
            footer = _read_footer(storage, path)
        except StorageError:
            raise
        except FileNotFoundError:
            raise damaged(layout, index, chunk.row, path, MISSING) from None
        except (pa.ArrowException, OSError, ValueError) as error:
            what = f"its footer cannot be read ({error})"
            raise damaged(layout, index, chunk.row, path, what) from error
        self._footers.put(key, footer)
        return footer


@functools.cache
def build() -> ParquetFormat:
    """Return the format, one for the process, so that its footers are shared."""
    return ParquetFormat()


def _value_type(layout: ArrayLayout) -> pa.DataType:
    return pa.binary(2) if layout.dtype == "bfloat16" else pa.from_numpy_dtype(layout.dtype)


def _schema(layout: ArrayLayout) -> pa.Schema:
    value = pa.field("element", _value_type(layout), nullable=False)
    latents = pa.list_(value, int(np.prod(layout.shape)))
    return pa.schema(
        [
            pa.field("latents", latents, nullable=False),
            pa.field("row", pa.int32(), nullable=False),
        ],
        metadata={"dtype": layout.dtype, "shape": json.dumps(layout.shape)},
    )


def _writer_options(layout: ArrayLayout) -> dict[str, Any]:
    compression: dict[str, Any] = {"compression": "NONE"}
    if layout.codec == "zstd":
        compression = {"compression": "zstd", "compression_level": layout.level}
    elif layout.codec == "lz4":  # which has no levels in Parquet
        compression = {"compression": "lz4"}
    return {
        **compression,
        "use_dictionary": False,
        "write_statistics": False,
        "column_encoding": {"latents.list.element": "BYTE_STREAM_SPLIT", "row": "PLAIN"},
        "data_page_size": 2**31 - 1,  # one page a clip
    }


def _row_chunk(layout: ArrayLayout, row: int) -> bytes:
    """Return the column `row` of one row group."""
    schema, buffer = pa.schema([_schema(layout).field("row")]), io.BytesIO()
    options = {**_writer_options(layout), "column_encoding": {"row": "PLAIN"}}
    with pq.ParquetWriter(buffer, schema, **options) as writer:
        writer.write_table(pa.table([pa.array([row], pa.int32())], schema=schema))
    data = buffer.getvalue()
    (group,) = read_row_groups(data[-footer_bytes(data, len(data)) :])
    offset, length = _extent(group)
    return data[offset : offset + length]


def _to_arrow(layout: ArrayLayout, array: Array) -> pa.Array:
    flat, type_ = np.ascontiguousarray(array).reshape(-1), _schema(layout).field("latents").type
    buffer = pa.py_buffer(flat.view(np.uint8))
    values = pa.Array.from_buffers(type_.value_type, flat.size, [None, buffer])
    return pa.FixedSizeListArray.from_arrays(values, type=type_)


@dataclass(frozen=True, kw_only=True)
class _Footer:
    """A file's footer: for pyarrow, and as it was read here. extents: (offset, length) by row group.

    facts: what it says of each row group, as it is written.
    """

    metadata: pq.FileMetaData
    groups: Sequence[RowGroup]
    extents: Sequence[tuple[int, int]]
    facts: Sequence[bytes]

    def find(self, chunk: ChunkRef) -> int | None:
        """Return the number of the row group that lies where `chunk` says, or None."""
        place = (chunk.offset, chunk.length)
        at = bisect.bisect_left(self.extents, place)
        return at if at < len(self.extents) and self.extents[at] == place else None


def _parse(footer: bytes) -> _Footer:
    groups = read_row_groups(footer)
    return _Footer(
        metadata=pq.read_metadata(pa.BufferReader(MAGIC + footer)),
        groups=groups,
        extents=[_extent(group) for group in groups],
        facts=parquet_pack.groups_of(footer),
    )


def _extent(group: RowGroup) -> tuple[int, int]:
    """Return offset and length of a row group, whose columns follow each other."""
    start = min((column.offset for column in group.columns), default=0)
    return start, sum(column.length for column in group.columns)


def _read_footer(storage: Storage, path: str) -> _Footer:
    size = storage.size(path)
    tail = _read_tail(storage, path, size, FOOTER_GUESS_BYTES)
    needed = footer_bytes(tail, size)
    if needed > len(tail):
        tail = _read_tail(storage, path, size, needed)
    return _parse(tail[-needed:])


def _read_tail(storage: Storage, path: str, size: int, length: int) -> bytes:
    start = max(0, size - length)
    return storage.read_ranges(path, [(start, size - start)])[0]


def _decode(
    layout: ArrayLayout, footer: _Footer, chunk: ChunkRef, block: memoryview, out: Array
) -> None:
    group = footer.find(chunk)
    if group is None:
        raise ValueError("the footer has no row group there")
    _check_size(layout, footer.groups[group], chunk, block, out)
    source = pa.PythonFile(_Window(chunk.offset, block), mode="r")
    table = pq.ParquetFile(source, metadata=footer.metadata).read_row_group(
        group, columns=["latents"], use_threads=False
    )
    column = table.column("latents").combine_chunks()
    if column.type != _schema(layout).field("latents").type or len(column) != 1:
        raise ValueError(f"it holds {len(column)} rows of {column.type}")
    values = column.flatten()
    size, width = len(values), out.dtype.itemsize
    bits = np.frombuffer(values.buffers()[1], np.uint8, size * width, values.offset * width)
    out.view(np.uint8).reshape(-1)[:] = bits


def _check_size(
    layout: ArrayLayout, group: RowGroup, chunk: ChunkRef, block: memoryview, out: Array
) -> None:
    """Raise ValueError where decoding would take more memory than one sample does."""
    latents = [column for column in group.columns if column.path[0] == "latents"]
    if group.num_rows != 1 or [column.num_values for column in latents] != [out.size]:
        raise ValueError(f"it says {group.num_rows} rows, and is not one sample")
    pages = measure(block, latents, chunk.offset)
    # Parquet has no integers of less than 32 bits: narrower ones take as much in a page.
    width = max(out.dtype.itemsize, INTEGER_BYTES if "int" in layout.dtype else 0)
    if pages.num_bytes > out.size * width + PAGE_OVERHEAD_BYTES or pages.list_values != out.size:
        raise ValueError(f"it would decode to {pages.list_values} values")


class _Window(SeekableFile):
    """A file of which only the bytes from `start` on are there, for a reader that stays in them."""

    def __init__(self, start: int, data: memoryview) -> None:
        super().__init__(start + len(data))
        self._start, self._data, self._position = start, data, start

    def read(self, size: int = -1) -> Any:
        start = self._position - self._start
        if start < 0:
            raise ValueError(f"bytes before {self._start} are not in the window")
        view = self._data[start:] if size < 0 else self._data[start : start + size]
        self._position += len(view)
        return view
