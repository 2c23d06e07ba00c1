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
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef
from latentcache.core.spec import ITEM_BYTES
from latentcache.format import checksum
from latentcache.format.shards import bfloat16
from latentcache.format.shards.protocol import ArrayLayout, EncodedShard, StoredChunk
from latentcache.format.shards.ranges import ShardObject, check_rows, read_chunks
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage

__all__ = ["ZarrFormat", "bfloat16", "build"]

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
#: Offset and length of an absent chunk in a shard index.
ABSENT = 2**64 - 1

# As zarr-python sets it. Blosc's own threads would make the bytes depend on their timing, and they
# do not survive a fork; every caller here brings its own threads.
numcodecs.blosc.use_threads = False


class ZarrFormat:
    """Shard objects `latents/BUCKET/c/SHARD/0/...`: chunks with CRC32C, the sample table, an index."""

    def metadata(self, layouts: Sequence[ArrayLayout]) -> Mapping[str, bytes]:
        """Return one array's metadata a bucket, then those of the groups around them."""
        return {path: checksum.seal(data) for path, data in _metadata(layouts).items()}

    def path(self, layout: ArrayLayout, index: int) -> str:
        """Return `latents/BUCKET/c/INDEX/0/...`, as Zarr names the shards of an array."""
        zeros = "/0" * len(layout.shape)
        return f"latents/{layout.bucket.name}/c/{index}{zeros}"

    def encode_shard(
        self, layout: ArrayLayout, index: int, rows: Sequence[Array | None]
    ) -> EncodedShard:
        """Compress the rows; where all failed, the object is an index without chunks."""
        check_rows(layout, index, rows, numpy_dtype(layout.dtype))
        payloads = (None if array is None else _compress(layout, array) for array in rows)
        return self._join(layout, index, payloads)

    def take(
        self, storage: Storage, layout: ArrayLayout, index: int, chunks: Sequence[ChunkRef]
    ) -> list[StoredChunk]:
        """Read chunks as they are."""
        shard = ShardObject(
            storage=storage, layout=layout, index=index, path=self.path(layout, index)
        )
        found = {n: StoredChunk(bytes(block)) for n, block in read_chunks(shard, chunks)}
        return [found[n] for n in range(len(chunks))]

    def pack(
        self, layout: ArrayLayout, index: int, chunks: Sequence[StoredChunk | None]
    ) -> EncodedShard:
        """Join chunks to one object."""
        return self._join(layout, index, (None if c is None else c.data for c in chunks))

    def _join(
        self, layout: ArrayLayout, index: int, payloads: Iterable[bytes | None]
    ) -> EncodedShard:
        parts: list[bytes] = []
        chunks: list[ChunkRef | None] = []
        position = 0
        for row, payload in enumerate(payloads):
            if payload is None:
                chunks.append(None)
                continue
            crc = _crc(payload)
            parts += [payload, crc.to_bytes(CRC_BYTES, "little")]
            chunks.append(ChunkRef(row=row, offset=position, length=len(payload), crc32c=crc))
            position += len(payload) + CRC_BYTES
        tail = _shard_index(layout.shard_rows, chunks)
        return EncodedShard(self.path(layout, index), b"".join(parts), tail, chunks)

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
        """Read chunks straight into `out` where they are not compressed, else decompress them there."""
        path = self.path(layout, index)
        shard = ShardObject(
            storage=storage, layout=layout, index=index, path=path, check=check, disk=disk
        )
        targets = [array.view(np.uint8).reshape(-1) for array in out]
        if layout.codec == "none":
            _check_lengths(shard, chunks)
            for _ in read_chunks(shard, chunks, [target.data for target in targets]):
                pass
            return
        for n, block in read_chunks(shard, chunks):
            try:
                _decompress(block, targets[n])
            except (RuntimeError, ValueError) as error:
                what = f"its bytes do not decompress ({error})"
                raise shard.damaged(chunks[n].row, what) from error

    def tail_bytes(self, layout: ArrayLayout, data: bytes) -> int:  # noqa: ARG002
        """Return the length of Zarr's index, which is the same for all shards of an array."""
        return INDEX_ENTRY_BYTES * layout.shard_rows + CRC_BYTES

    def decode(self, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array) -> None:
        """Decompress one chunk of a whole shard object."""
        block = memoryview(data)[chunk.offset : chunk.offset + chunk.length]
        target = out.view(np.uint8).reshape(-1)
        if layout.codec != "none":
            try:
                _decompress(block, target)
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        elif len(block) == len(target):
            target[:] = np.frombuffer(block, np.uint8)
        else:
            raise ValueError(f"{len(block)} bytes are not one sample")


@functools.cache
def build() -> ZarrFormat:
    """Return the format; it has no state."""
    return ZarrFormat()


def _metadata(layouts: Sequence[ArrayLayout]) -> dict[str, bytes]:
    store = MemoryStore()
    unsealed: dict[str, Any] = {checksum.KEY: checksum.EMPTY}
    root = zarr.create_group(store, zarr_format=3, attributes=unsealed)
    group = root.create_group("latents", attributes=unsealed)
    for layout in layouts:
        group.create_array(
            layout.bucket.name,
            shape=(layout.num_rows, *layout.shape),
            dtype=numpy_dtype(layout.dtype),
            chunks=(1, *layout.shape),
            shards=(layout.shard_rows, *layout.shape),
            compressors=_compressors(layout),
            fill_value=0 if layout.dtype.startswith("uint") else float("nan"),
            attributes=unsealed,
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


def _decompress(block: memoryview, target: Array) -> None:
    # Blosc believes its header: one that lies would have it read past the block, or write too little.
    num_bytes, _, compressed_bytes = (
        struct.unpack_from("<3I", block, 4) if len(block) > 16 else (0,) * 3
    )
    if (num_bytes, compressed_bytes) != (target.nbytes, len(block)):
        raise ValueError("its header is of another length")
    numcodecs.blosc.decompress(block, target)


def _check_lengths(shard: ShardObject, chunks: Sequence[ChunkRef]) -> None:
    num_bytes = math.prod(shard.layout.shape) * ITEM_BYTES[shard.layout.dtype]
    for chunk in chunks:
        if chunk.length != num_bytes:
            raise shard.damaged(chunk.row, f"{chunk.length} bytes are not one sample")


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
