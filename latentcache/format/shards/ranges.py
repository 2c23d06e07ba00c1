"""Ranged reads that every format shares: chunks of one shard object, coalesced and checked.

Local files are read a chunk at a time into memory that is used again. Remote objects are read in
concurrent requests, and what a disk cache holds of them is not asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from latentcache.core.dtypes import Array
from latentcache.core.records import ChunkRef
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CorruptionError
from latentcache.format.damage import CLEANED
from latentcache.format.shards.protocol import LATENTS, ArrayLayout, Format
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage

#: A local file is read in pieces of so many bytes, which a core's cache holds beside what else it needs.
PIECE_BYTES = 1 << 18
#: Chunks of a remote object at most this far apart are one request. A request costs s3fs 2 ms of CPU time,
#: and a megabyte another one, so twice as much would pay there, but not on a link of 100 MB/s.
MAX_GAP_BYTES = 128 << 10
#: What a chunk takes beyond its sample where nothing can be compressed: headers of blosc, or of pages.
CHUNK_OVERHEAD_BYTES = 8192
#: Blosc's header and the CRC32C of a piece.
PIECE_OVERHEAD_BYTES = 20
#: What a shard object holds beside its chunks: a row of the sample table with a long caption, an entry of
#: Zarr's index or of Parquet's footer; and what the file takes once.
ROW_OVERHEAD_BYTES = 1 << 20
FILE_OVERHEAD_BYTES = 1 << 20
#: Far beyond any object.
MAX_OFFSET = 1 << 50
#: What is wrong with an object that is not there.
MISSING = "the object is missing"


def check_rows(
    layout: ArrayLayout, index: int, rows: Sequence[Array | None], dtype: object
) -> None:
    """Raise ValueError where the rows are not those of shard `index`: a mistake of the caller."""
    if not 0 < len(rows) <= layout.shard_samples:
        raise ValueError(
            f"{where(layout, index)} has 1 to {layout.shard_samples} rows, not {len(rows)}"
        )
    for row, array in enumerate(rows):
        if array is not None and (not _fits(layout, array.shape) or array.dtype != dtype):
            raise ValueError(
                f"{where(layout, index)}, row {row}: the cache stores {layout.dtype} "
                f"{list(layout.shape)}, not {array.dtype} {list(array.shape)}"
            )


def _fits(layout: ArrayLayout, shape: tuple[int, ...]) -> bool:
    short = layout.padded and len(shape) == len(layout.shape) and shape[0] <= layout.shape[0]
    return shape[1:] == layout.shape[1:] if short else shape == layout.shape


def where(layout: ArrayLayout, index: int, row: int | None = None) -> str:
    """Return `shard BUCKET/INDEX` or `shard BUCKET/INDEX, row ROW`, for messages."""
    return f"shard {layout.bucket.name}/{index}" + ("" if row is None else f", row {row}")


def damaged(
    layout: ArrayLayout, index: int, row: int | None, path: str, what: str
) -> CorruptionError:
    """Return the error for stored bytes that cannot be what was committed."""
    lost = "latents are" if layout.folder == LATENTS else "field's values are"
    begin = f"{CLEANED}. Else the" if what == MISSING else "The"
    return CorruptionError(
        f"{where(layout, index, row)}: {what} ({path}), although its sample table says ok. {begin} "
        f"{lost} lost or damaged: `latentcache verify URL --repair` plans the clip again, and "
        "`latentcache resume URL` then encodes it."
    )


def longest_chunk(layout: ArrayLayout) -> int:
    """Return the most bytes that a stored sample can take.

    Narrow integers take 32 bits each in Parquet, until they are compressed.
    """
    num_values = layout.pieces * math.prod(layout.piece_shape)
    num_bytes = num_values * max(ITEM_BYTES[layout.dtype], 4 if "int" in layout.dtype else 0)
    return num_bytes + num_bytes // 8 + layout.pieces * PIECE_OVERHEAD_BYTES + CHUNK_OVERHEAD_BYTES


def largest_object(layout: ArrayLayout) -> int:
    """Return the most bytes that a shard object can take, its sample table included."""
    return layout.shard_samples * (longest_chunk(layout) + ROW_OVERHEAD_BYTES) + FILE_OVERHEAD_BYTES


@dataclass(frozen=True, kw_only=True)
class ShardObject:
    """One shard object to read chunks of. check: whether to compare their CRC32C.

    kept_as: the name under which `disk` keeps its chunks; omitted, the path.
    """

    storage: Storage
    layout: ArrayLayout
    index: int
    path: str
    check: bool = True
    disk: DiskCache | None = None
    kept_as: str | None = None

    def damaged(self, row: int | None, what: str) -> CorruptionError:
        """Return the error for bytes of it that cannot be what was committed."""
        return damaged(self.layout, self.index, row, self.path, what)


def read_chunks(
    shard: ShardObject, chunks: Sequence[ChunkRef], into: Sequence[memoryview] | None = None
) -> Iterator[tuple[int, memoryview]]:
    """Yield (position in `chunks`, bytes) of every chunk, in any order.

    into: where the bytes shall be, each as long as its chunk; omitted, they are in memory of this
    thread that is good until the next ones are asked for. Raises CorruptionError where the object is
    missing or too short, or a CRC32C differs.
    """
    _check_places(shard, chunks)
    try:
        if shard.storage.is_local:
            yield from _read_local(shard, chunks, into)
        else:
            yield from _read_remote(shard, chunks, into)
    except FileNotFoundError:
        row = chunks[0].row if len(chunks) == 1 else None
        raise shard.damaged(row, MISSING) from None


def read_whole(
    shard_format: Format,
    storage: Storage,
    layout: ArrayLayout,
    index: int,
    chunks: Sequence[ChunkRef],
    picks: Sequence[Sequence[int] | None],
    out: Sequence[Array],
    numbers: Sequence[int],
    *,
    check: bool = True,
    disk: DiskCache | None = None,
) -> None:
    """Read the chunks of these numbers whole, and copy the picked frames, byte for byte.

    Frames are the axis of the layout's pieces, or the third from the end; samples without them, such as
    multi-scale ids, come whole.
    """
    axis = layout.piece_axis if layout.piece else len(layout.shape) - 3
    cut = {n for n in numbers if picks[n] is not None and axis >= 0}
    wholes = [np.empty(layout.shape, out[n].dtype) if n in cut else out[n] for n in numbers]
    some = [chunks[n] for n in numbers]
    if some:
        shard_format.read(storage, layout, index, some, wholes, check=check, disk=disk)
    for n, whole in zip(numbers, wholes, strict=True):
        if n in cut:
            out[n][:] = whole.take(list(picks[n] or ()), axis=axis)


def _read_local(
    shard: ShardObject, chunks: Sequence[ChunkRef], into: Sequence[memoryview] | None
) -> Iterator[tuple[int, memoryview]]:
    """Read chunk by chunk, each in pieces whose CRC32C is computed while they are in the core's cache."""
    buffers = into or _Scratch(chunks)
    size = PIECE_BYTES if shard.check else MAX_OFFSET
    wanted = (
        (chunk.offset + start, buffers[n][start : start + size])
        for n, chunk in enumerate(chunks)
        for start in range(0, chunk.length, size)
    )
    read = shard.storage.read_into(shard.path, wanted)
    for n, chunk in enumerate(chunks):
        data, crc = _read_pieces(read, buffers[n], size, has_crc=shard.check)
        _check_read(shard, chunk, len(data), crc)
        yield n, data


def _read_pieces(
    read: Iterator[int], buffer: memoryview, size: int, *, has_crc: bool
) -> tuple[memoryview, int | None]:
    """Let pieces of a size fill a buffer; returns what was there to read, and its CRC32C if wanted."""
    crc, num_bytes = 0 if has_crc else None, 0
    for start in range(0, len(buffer), size):
        got = next(read)
        num_bytes += got
        if crc is not None and got:
            crc = google_crc32c.extend(crc, np.frombuffer(buffer[start : start + got], np.uint8))
    return buffer[:num_bytes], crc


def _read_remote(
    shard: ShardObject, chunks: Sequence[ChunkRef], into: Sequence[memoryview] | None
) -> Iterator[tuple[int, memoryview]]:
    missing = list(range(len(chunks)))
    if shard.disk is not None:
        buffers = into or _Scratch(chunks)
        for n, data in shard.disk.read(shard.kept_as or shard.path, chunks, buffers):
            missing.remove(n)
            yield n, data
    for n, data in zip(missing, _fetch(shard, [chunks[n] for n in missing]), strict=True):
        if into is not None:
            into[n][:] = data
        yield n, into[n] if into is not None else data


def _fetch(shard: ShardObject, chunks: Sequence[ChunkRef]) -> list[memoryview]:
    """Return the bytes of chunks in as few requests as their places allow; keep them on disk."""
    groups = _coalesce(chunks)
    ranges = [(group[0].offset, max(map(_end, group)) - group[0].offset) for group in groups]
    blocks = shard.storage.read_ranges(shard.path, ranges) if ranges else []
    found: dict[ChunkRef, memoryview] = {}
    for group, block in zip(groups, blocks, strict=True):
        view, start = memoryview(block), group[0].offset
        for chunk in group:
            found[chunk] = view[chunk.offset - start : _end(chunk) - start]
    for chunk, data in found.items():
        _check(shard, chunk, data)
    if shard.disk is not None:
        shard.disk.write(shard.kept_as or shard.path, found)
    return [found[chunk] for chunk in chunks]


def _check_places(shard: ShardObject, chunks: Sequence[ChunkRef]) -> None:
    """Refuse lengths and places that no compressed sample has, before memory is taken for them."""
    longest = longest_chunk(shard.layout)
    for chunk in chunks:
        if not (0 < chunk.length <= longest and 0 <= chunk.offset <= MAX_OFFSET):
            what = f"its sample table says {chunk.length} bytes at {chunk.offset}, which cannot be"
            raise shard.damaged(chunk.row, what)


def _check(shard: ShardObject, chunk: ChunkRef, data: memoryview) -> None:
    # Through numpy, because google_crc32c takes no memoryview and bytes would be a copy.
    crc = google_crc32c.value(np.frombuffer(data, np.uint8)) if shard.check and data else None
    _check_read(shard, chunk, len(data), crc)


def _check_read(shard: ShardObject, chunk: ChunkRef, num_bytes: int, crc: int | None) -> None:
    """Raise CorruptionError if a chunk is too short, or if its CRC32C, where there is one, differs."""
    if num_bytes != chunk.length:
        raise shard.damaged(chunk.row, f"the object ends {chunk.length - num_bytes} bytes early")
    if crc is not None and crc != chunk.crc32c:
        raise shard.damaged(chunk.row, "its bytes fail their CRC32C")


class _Scratch:
    """A buffer for each chunk, all of them the same memory of this thread."""

    _of_thread = threading.local()

    def __init__(self, chunks: Sequence[ChunkRef]) -> None:
        self._lengths = [chunk.length for chunk in chunks]
        num_bytes = max(self._lengths, default=0)
        memory = getattr(self._of_thread, "memory", b"")
        if len(memory) < num_bytes:
            memory = self._of_thread.memory = np.empty(num_bytes, np.uint8)
        self._view = memoryview(memory)

    def __getitem__(self, n: int) -> memoryview:
        return self._view[: self._lengths[n]]


def _end(chunk: ChunkRef) -> int:
    return chunk.offset + chunk.length


def _coalesce(chunks: Sequence[ChunkRef]) -> list[list[ChunkRef]]:
    groups: list[list[ChunkRef]] = []
    for chunk in sorted(chunks, key=lambda c: c.offset):
        if groups and chunk.offset - _end(groups[-1][-1]) <= MAX_GAP_BYTES:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups
