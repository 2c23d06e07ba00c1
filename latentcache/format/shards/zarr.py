"""Zarr v3: ONE sharded array a bucket, chunk = one clip, Zarr shard = one shard of the cache.

zarr-python writes the metadata, and reads the arrays as any Zarr reader does. Shard objects are
laid out here: a row that failed must be absent and every other present, whatever its values, and
zarr-python decides that by comparing with the fill value: it would drop a clip of zeros and keep a
bfloat16 chunk of NaN. The contract suite compares objects with zarr-python's own, byte for byte.
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CorruptionError
from latentcache.format import checksum
from latentcache.format.shards import bfloat16, pieces
from latentcache.format.shards.pieces import CRC_BYTES
from latentcache.format.shards.protocol import LATENTS, ArrayLayout, EncodedShard, StoredChunk
from latentcache.format.shards.ranges import ShardObject, check_rows, read_chunks, read_whole
from latentcache.format.shards.zarr_index import (
    ABSENT,
    MAX_INDICES,
    Indices,
    index_bytes,
    piece_ref,
)
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage

__all__ = ["ZarrFormat", "bfloat16", "build"]

ZARR_JSON = "zarr.json"


class ZarrFormat:
    """Shard objects `FOLDER/BUCKET/c/SHARD/0/...`: chunks with CRC32C, the sample table, an index.

    Keeps the indices of the objects of which frames were picked last.
    """

    def __init__(self, max_indices: int = MAX_INDICES) -> None:
        self._indices = Indices(max_indices)

    def metadata(self, layouts: Sequence[ArrayLayout]) -> Mapping[str, bytes]:
        """Return one array's metadata a bucket, then those of the groups around them."""
        return {path: checksum.seal(data) for path, data in _metadata(layouts).items()}

    def path(self, layout: ArrayLayout, index: int) -> str:
        """Return `FOLDER/BUCKET/c/INDEX/0/...`, as Zarr names the shards of an array."""
        zeros = "/0" * (len(_axes(layout, 1)) - 1)
        return f"{layout.folder}/{layout.bucket.name}/c/{index}{zeros}"

    def encode_shard(
        self, layout: ArrayLayout, index: int, rows: Sequence[Array | None]
    ) -> EncodedShard:
        """Compress the rows; where all failed, the object is an index without chunks."""
        check_rows(layout, index, rows, numpy_dtype(layout.dtype))
        joined, firsts = _Joined(layout), dict[int, int]()
        for row, array in enumerate(rows):
            if array is None:
                joined.skip()
            elif (first := firsts.setdefault(id(array), row)) != row:
                joined.repeat(first)
            else:
                joined.add(*pieces.compress(layout, array))
        return joined.finish(self.path(layout, index))

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
        """Join chunks to one object. Rows that are the same chunk are stored once.

        Raises ValueError where a chunk is not of whole pieces.
        """
        joined, firsts = _Joined(layout), dict[int, int]()
        for row, chunk in enumerate(chunks):
            if chunk is None:
                joined.skip()
            elif (first := firsts.setdefault(id(chunk), row)) != row:
                joined.repeat(first)
            else:
                joined.add(*pieces.stored(layout, memoryview(chunk.data)))
        return joined.finish(self.path(layout, index))

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
        if layout.codec == "none" and not layout.piece:
            _check_lengths(shard, chunks)
            for _ in read_chunks(shard, chunks, [pieces.bytes_of(array).data for array in out]):
                pass
            return
        for n, block in read_chunks(shard, chunks):
            try:
                pieces.decompress(layout, block, out[n])
            except (RuntimeError, ValueError) as error:
                raise _not_decompressed(shard, chunks[n], error) from error

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
        """Read of each chunk the pieces that hold the picked frames, by Zarr's index, which is kept."""
        where = (storage, layout, index)
        whole = [n for n, frames in enumerate(picks) if frames is None or layout.pieces == 1]
        read_whole(self, *where, chunks, picks, out, whole, check=check, disk=disk)
        cut = sorted(set(range(len(chunks))) - set(whole))
        if not cut:
            return
        path = self.path(layout, index)
        shard = ShardObject(
            storage=storage, layout=layout, index=index, path=path, check=check, disk=disk
        )
        table = self._indices.read(shard, [chunks[n] for n in cut])
        for some in [[n] for n in cut] if disk else [cut]:
            # Any sound piece passes its check, so the disk must tell two objects of one path apart.
            kept_as = f"{path}@{chunks[some[0]].crc32c:08x}" if disk else None
            wanted = [(chunks[n], picks[n] or (), out[n]) for n in some]
            _read_pieces(replace(shard, kept_as=kept_as), table, wanted)

    def tail_bytes(self, layout: ArrayLayout, data: bytes) -> int:  # noqa: ARG002
        """Return the length of Zarr's index, which is the same for all shards of an array."""
        return index_bytes(layout)

    def decode(self, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array) -> None:
        """Decompress one chunk of a whole shard object."""
        block = memoryview(data)[chunk.offset : chunk.offset + chunk.length]
        try:
            pieces.decompress(layout, block, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from error


@functools.cache
def build() -> ZarrFormat:
    """Return the format, one for the process, so that its indices are shared."""
    return ZarrFormat()


def _metadata(layouts: Sequence[ArrayLayout]) -> dict[str, bytes]:
    store, paths = MemoryStore(), set()
    unsealed: dict[str, Any] = {checksum.KEY: checksum.EMPTY}
    if any(layout.folder == LATENTS for layout in layouts):
        root = zarr.create_group(store, zarr_format=3, attributes=unsealed)
        root.create_group(LATENTS, attributes=unsealed)
        paths = {ZARR_JSON, f"{LATENTS}/{ZARR_JSON}"}
    for layout in layouts:
        zarr.create_array(
            store,
            name=f"{layout.folder}/{layout.bucket.name}",
            shape=_axes(layout, layout.num_rows),
            dtype=numpy_dtype(layout.dtype),
            chunks=_chunk_shape(layout),
            shards=_shard_shape(layout),
            compressors=_compressors(layout),
            fill_value=pieces.fill_value(layout),
            attributes=unsealed,
        )
        paths.add(f"{layout.folder}/{layout.bucket.name}/{ZARR_JSON}")
    # Only these: zarr-python makes a group of each folder above an array, too.
    objects = {path: store._store_dict[path].to_bytes() for path in paths}
    return dict(sorted(objects.items(), key=lambda item: (-item[0].count("/"), item[0])))


def _axes(layout: ArrayLayout, num_rows: int) -> tuple[int, ...]:
    choices = (layout.choices,) if layout.choices > 1 else ()
    return (num_rows, *choices, *layout.shape)


def _chunk_shape(layout: ArrayLayout) -> tuple[int, ...]:
    choices = (1,) if layout.choices > 1 else ()
    return (1, *choices, *layout.piece_shape)


def _shard_shape(layout: ArrayLayout) -> tuple[int, ...]:
    """Return a Zarr shard's shape: of whole pieces, so that it may be longer than the array."""
    filled, axis = list(_axes(layout, layout.shard_rows)), layout.piece_axis - len(layout.shape)
    filled[axis] = layout.pieces * layout.piece_shape[layout.piece_axis]
    return tuple(filled)


def _compressors(layout: ArrayLayout) -> list[Any]:
    if layout.codec == "none":
        return [Crc32cCodec()]
    names: Any = {"cname": layout.codec, "shuffle": pieces.SHUFFLES[layout.codec][0]}
    blosc = BloscCodec(typesize=ITEM_BYTES[layout.dtype], clevel=layout.level, **names)
    return [blosc, Crc32cCodec()]


class _Joined:
    """The chunks of an object, one after the other, and Zarr's index of where each is."""

    def __init__(self, layout: ArrayLayout) -> None:
        self._table = np.full((layout.shard_samples, layout.pieces, 2), ABSENT, dtype="<u8")
        self._parts: list[bytes] = []
        self._chunks: list[ChunkRef | None] = []
        self._position = 0

    def skip(self) -> None:
        """Leave out a row, which has no chunk."""
        self._chunks.append(None)

    def repeat(self, first: int) -> None:
        """Let a row share the chunk of an earlier one."""
        row = len(self._chunks)
        self._table[row] = self._table[first]
        self._chunks.append(replace(cast(ChunkRef, self._chunks[first]), row=row))

    def add(self, start: int, parts: Sequence[bytes]) -> None:
        """Add the pieces of a row, the first of which is piece `start` of its sample."""
        row = len(self._chunks)
        block = _lay_out(parts, self._position, self._table[row, start:])
        stored = block[:-CRC_BYTES]
        self._parts.append(block)
        self._chunks.append(
            ChunkRef(
                row=row, offset=self._position, length=len(stored), crc32c=pieces.crc32c(stored)
            )
        )
        self._position += len(block)

    def finish(self, path: str) -> EncodedShard:
        """Return the object: its chunks, then the index with its CRC32C."""
        data = self._table.tobytes()
        tail = data + pieces.crc32c(data).to_bytes(CRC_BYTES, "little")
        return EncodedShard(path, b"".join(self._parts), tail, self._chunks)


def _lay_out(parts: Sequence[bytes], position: int, table: Array) -> bytes:
    """Return the bytes of pieces, each with its CRC32C, and enter in Zarr's index where each is."""
    found = []
    for n, piece in enumerate(parts):
        table[n] = position, len(piece) + CRC_BYTES
        position += len(piece) + CRC_BYTES
        found += [piece, pieces.crc32c(piece).to_bytes(CRC_BYTES, "little")]
    return b"".join(found)


def _read_pieces(
    shard: ShardObject, table: Array, wanted: Sequence[tuple[ChunkRef, Sequence[int], Array]]
) -> None:
    """Read of each chunk the pieces with some frames, and copy these frames to its array."""
    layout, refs, targets = shard.layout, list[ChunkRef](), list[tuple[int, Sequence[int], Array]]()
    for chunk, frames, out in wanted:
        for piece in sorted({frame // layout.piece_shape[layout.piece_axis] for frame in frames}):
            refs.append(piece_ref(chunk, table[chunk.row, piece]))
            targets.append((piece, frames, out))
    for n, block in read_chunks(shard, refs):
        try:
            pieces.decompress_frames(layout, block[:-CRC_BYTES], *targets[n])
        except (RuntimeError, ValueError) as error:
            raise _not_decompressed(shard, refs[n], error) from error


def _not_decompressed(shard: ShardObject, chunk: ChunkRef, error: Exception) -> CorruptionError:
    return shard.damaged(chunk.row, f"its bytes do not decompress ({error})")


def _check_lengths(shard: ShardObject, chunks: Sequence[ChunkRef]) -> None:
    num_bytes = shard.layout.sample_bytes
    for chunk in chunks:
        if chunk.length != num_bytes:
            raise shard.damaged(chunk.row, f"{chunk.length} bytes are not one sample")
