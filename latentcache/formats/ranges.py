"""Ranged reads that every format shares: chunks of one shard object, coalesced and checked."""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c
import numpy as np

from latentcache.errors import CorruptionError
from latentcache.interfaces import Array, ArrayLayout
from latentcache.records import ChunkRef
from latentcache.storage import Storage

#: Chunks at most this far apart are one request: Zarr's checksums (4 bytes) stand between them.
MAX_GAP_BYTES = 64


def check_rows(
    layout: ArrayLayout, index: int, rows: Sequence[Array | None], dtype: object
) -> None:
    """Raise ValueError where the rows are not those of shard `index`: a mistake of the caller."""
    num_rows = min(layout.shard_rows, layout.num_rows - index * layout.shard_rows)
    if len(rows) != num_rows:
        raise ValueError(f"{where(layout, index)} has {num_rows} rows, not {len(rows)}")
    for row, array in enumerate(rows):
        if array is not None and (array.shape != layout.shape or array.dtype != dtype):
            raise ValueError(
                f"{where(layout, index)}, row {row}: the cache stores {layout.dtype} "
                f"{list(layout.shape)}, not {array.dtype} {list(array.shape)}"
            )


def where(layout: ArrayLayout, index: int, row: int | None = None) -> str:
    """Return `shard BUCKET/INDEX` or `shard BUCKET/INDEX, row ROW`, for messages."""
    return f"shard {layout.bucket.name}/{index}" + ("" if row is None else f", row {row}")


def damaged(
    layout: ArrayLayout, index: int, row: int | None, path: str, what: str
) -> CorruptionError:
    """Return the error for stored bytes that cannot be what was committed."""
    return CorruptionError(
        f"{where(layout, index, row)}: {what} ({path}), although its sample table says ok. The "
        f"latents are lost or damaged: delete samples/{layout.bucket.name}/{index:06d}.parquet and "
        "run `latentcache resume` to encode the shard again."
    )


def read_chunks(
    storage: Storage, layout: ArrayLayout, index: int, path: str, chunks: Sequence[ChunkRef]
) -> list[memoryview]:
    """Return the bytes of each chunk, in order, read in as few requests as their places allow.

    Raises CorruptionError where the object is missing or too short, or a CRC32C differs.
    """
    groups = _coalesce(chunks)
    ranges = [(group[0].offset, max(map(_end, group)) - group[0].offset) for group in groups]
    try:
        blocks = storage.read_ranges(path, ranges)
    except FileNotFoundError:
        row = chunks[0].row if len(chunks) == 1 else None
        raise damaged(layout, index, row, path, "the object is missing") from None
    found: dict[ChunkRef, memoryview] = {}
    for group, block in zip(groups, blocks, strict=True):
        view, start = memoryview(block), group[0].offset
        for chunk in group:
            found[chunk] = view[chunk.offset - start : _end(chunk) - start]
    for chunk, data in found.items():
        if len(data) != chunk.length or not data:
            what = f"the object ends {chunk.length - len(data)} bytes early"
            raise damaged(layout, index, chunk.row, path, what)
        # Through numpy, because google_crc32c takes no memoryview and bytes would be a copy.
        if google_crc32c.value(np.frombuffer(data, np.uint8)) != chunk.crc32c:
            raise damaged(layout, index, chunk.row, path, "its bytes fail their CRC32C")
    return [found[chunk] for chunk in chunks]


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
