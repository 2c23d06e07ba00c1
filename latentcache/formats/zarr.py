"""Zarr v3: ONE sharded array a bucket, chunk = one clip, Zarr shard = one shard of the cache.

zarr-python writes the metadata, and reads the arrays as any Zarr reader does. Shard objects are
laid out here: a row that failed must be absent and every other present, whatever its values, and
zarr-python decides that by comparing with the fill value: it would drop a clip of zeros and keep a
bfloat16 chunk of NaN. The contract suite compares objects with zarr-python's own, byte for byte.
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from latentcache.formats import bfloat16
from latentcache.formats.dtypes import numpy_dtype
from latentcache.formats.ranges import check_rows, damaged, read_chunks
from latentcache.interfaces import Array, ArrayLayout, EncodedShard
from latentcache.records import ITEM_BYTES, ChunkRef
from latentcache.storage import Storage

__all__ = ["ZarrFormat", "bfloat16", "build"]

CRC_BYTES = 4
#: Offset and length of an absent chunk in a shard index.
ABSENT = 2**64 - 1

# As zarr-python sets it. Blosc's own threads would make the bytes depend on their timing, and they
# do not survive a fork; every caller here brings its own threads.
numcodecs.blosc.use_threads = False


class ZarrFormat:
    """Shard objects `latents/BUCKET/c/SHARD/0/...`: chunks, each with its CRC32C, then an index."""

    def prepare(self, storage: Storage, layouts: Sequence[ArrayLayout]) -> None:
        """Write the root group, the group `latents` and one array's metadata a bucket."""
        for path, data in _metadata(layouts).items():
            storage.write(path, data)

    def encode_shard(
        self, layout: ArrayLayout, index: int, rows: Sequence[Array | None]
    ) -> EncodedShard:
        """Compress the rows; where all failed, the object is an index without chunks."""
        check_rows(layout, index, rows, numpy_dtype(layout.dtype))
        parts: list[bytes] = []
        chunks: list[ChunkRef | None] = []
        position = 0
        for row, array in enumerate(rows):
            if array is None:
                chunks.append(None)
                continue
            payload = _compress(layout, array)
            crc = _crc(payload)
            parts += [payload, crc.to_bytes(CRC_BYTES, "little")]
            chunks.append(ChunkRef(row=row, offset=position, length=len(payload), crc32c=crc))
            position += len(payload) + CRC_BYTES
        parts.append(_shard_index(layout.shard_rows, chunks))
        return EncodedShard(_path(layout, index), b"".join(parts), chunks)

    def read(
        self,
        storage: Storage,
        layout: ArrayLayout,
        index: int,
        chunks: Sequence[ChunkRef],
        out: Sequence[Array],
    ) -> None:
        """Read runs of chunks in one request each, and decompress straight into `out`."""
        path = _path(layout, index)
        blocks = read_chunks(storage, layout, index, path, chunks)
        for chunk, block, array in zip(chunks, blocks, out, strict=True):
            try:
                _decompress(layout, block, array)
            except (RuntimeError, ValueError) as error:
                what = f"its bytes do not decompress ({error})"
                raise damaged(layout, index, chunk.row, path, what) from error


@functools.cache
def build() -> ZarrFormat:
    """Return the format; it has no state."""
    return ZarrFormat()


def _path(layout: ArrayLayout, index: int) -> str:
    zeros = "/0" * len(layout.shape)
    return f"latents/{layout.bucket.name}/c/{index}{zeros}"


def _metadata(layouts: Sequence[ArrayLayout]) -> dict[str, bytes]:
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=3).create_group("latents")
    for layout in layouts:
        group.create_array(
            layout.bucket.name,
            shape=(layout.num_rows, *layout.shape),
            dtype=numpy_dtype(layout.dtype),
            chunks=(1, *layout.shape),
            shards=(layout.shard_rows, *layout.shape),
            compressors=_compressors(layout),
            fill_value=0 if layout.dtype.startswith("uint") else float("nan"),
        )
    objects = {path: buffer.to_bytes() for path, buffer in store._store_dict.items()}
    return dict(sorted(objects.items(), key=lambda item: item[0].count("/"), reverse=True))


def _compressors(layout: ArrayLayout) -> list[Any]:
    if layout.codec == "none":
        return [Crc32cCodec()]
    size = ITEM_BYTES[layout.dtype]
    blosc = BloscCodec(typesize=size, cname="zstd", clevel=layout.level, shuffle="shuffle")
    return [blosc, Crc32cCodec()]


def _compress(layout: ArrayLayout, array: Array) -> bytes:
    # A view as unsigned integers, because blosc takes the width of its shuffle from the items.
    words = np.ascontiguousarray(array).reshape(-1).view(f"<u{ITEM_BYTES[layout.dtype]}")
    if layout.codec == "none":
        return bytes(words.tobytes())
    return bytes(numcodecs.blosc.compress(words, b"zstd", layout.level))


def _decompress(layout: ArrayLayout, block: memoryview, out: Array) -> None:
    target = out.view(np.uint8).reshape(-1)
    if layout.codec == "none":
        if len(block) != math.prod(layout.shape) * ITEM_BYTES[layout.dtype]:
            raise ValueError(f"{len(block)} bytes are not one sample")
        target[:] = np.frombuffer(block, np.uint8)
    else:
        numcodecs.blosc.decompress(block, target)


def _shard_index(num_rows: int, chunks: Sequence[ChunkRef | None]) -> bytes:
    """Return (offset, length) of every chunk as little-endian uint64, then their CRC32C."""
    table = np.full((num_rows, 2), ABSENT, dtype="<u8")
    for row, chunk in enumerate(chunks):
        if chunk is not None:
            table[row] = chunk.offset, chunk.length + CRC_BYTES
    data = table.tobytes()
    return data + _crc(data).to_bytes(CRC_BYTES, "little")


def _crc(data: bytes) -> int:
    return int(google_crc32c.value(data))
