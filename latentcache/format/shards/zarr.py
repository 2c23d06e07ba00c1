"""Zarr v3: ONE sharded array a bucket, chunk = one clip, Zarr shard = one shard of the cache.

zarr-python writes the metadata, and reads the arrays as any Zarr reader does. Shard objects are
laid out here: a row that failed must be absent and every other present, whatever its values, and
zarr-python decides that by comparing with the fill value: it would drop a clip of zeros and keep a
bfloat16 chunk of NaN. The contract suite compares objects with zarr-python's own, byte for byte.
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

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
from latentcache.format.shards.protocol import LATENTS, ArrayLayout, EncodedShard, StoredChunk
from latentcache.format.shards.ranges import ShardObject, check_rows, read_chunks
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage

__all__ = ["ZarrFormat", "bfloat16", "build"]

CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16
ZARR_JSON = "zarr.json"
INDEX_ENTRY_BYTES = 16
#: Offset and length of an absent chunk in a shard index.
ABSENT = 2**64 - 1

# As zarr-python sets it. Blosc's own threads would make the bytes depend on their timing, and they
# do not survive a fork; every caller here brings its own threads.
numcodecs.blosc.use_threads = False


#: On real bfloat16 latents, blosc's lz4 takes 0.65 to 0.67 of their size with bits shuffled, 0.69 to 0.72
#: with bytes; zstd 0.57 to 0.60 with bytes, and 0.01 more with bits.
_SHUFFLES = {
    "zstd": ("shuffle", numcodecs.blosc.SHUFFLE),
    "lz4": ("bitshuffle", numcodecs.blosc.BITSHUFFLE),
}


class ZarrFormat:
    """Shard objects `FOLDER/BUCKET/c/SHARD/0/...`: chunks with CRC32C, the sample table, an index."""

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
                joined.add(*_compress_pieces(layout, array))
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
        """Join chunks to one object. Rows that are the same chunk are stored once."""
        joined, firsts = _Joined(layout), dict[int, int]()
        for row, chunk in enumerate(chunks):
            if chunk is None:
                joined.skip()
            elif (first := firsts.setdefault(id(chunk), row)) != row:
                joined.repeat(first)
            else:
                joined.add(*_stored_pieces(layout, chunk.data))
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
        targets = [array.view(np.uint8).reshape(-1) for array in out]
        if layout.codec == "none" and not layout.piece:
            _check_lengths(shard, chunks)
            for _ in read_chunks(shard, chunks, [target.data for target in targets]):
                pass
            return
        for n, block in read_chunks(shard, chunks):
            try:
                _decompress_pieces(layout, block, targets[n])
            except (RuntimeError, ValueError) as error:
                what = f"its bytes do not decompress ({error})"
                raise shard.damaged(chunks[n].row, what) from error

    def tail_bytes(self, layout: ArrayLayout, data: bytes) -> int:  # noqa: ARG002
        """Return the length of Zarr's index, which is the same for all shards of an array."""
        return INDEX_ENTRY_BYTES * layout.shard_samples * layout.pieces + CRC_BYTES

    def decode(self, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array) -> None:
        """Decompress one chunk of a whole shard object."""
        block = memoryview(data)[chunk.offset : chunk.offset + chunk.length]
        try:
            _decompress_pieces(layout, block, out.view(np.uint8).reshape(-1))
        except RuntimeError as error:
            raise ValueError(str(error)) from error


@functools.cache
def build() -> ZarrFormat:
    """Return the format; it has no state."""
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
            shards=_axes(layout, layout.shard_rows),
            compressors=_compressors(layout),
            fill_value=0 if layout.dtype.startswith("uint") or layout.padded else float("nan"),
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
    piece = (layout.piece,) if layout.piece else layout.shape[:1]
    return (1, *choices, *piece, *layout.shape[1:])


def _compressors(layout: ArrayLayout) -> list[Any]:
    if layout.codec == "none":
        return [Crc32cCodec()]
    names: Any = {"cname": layout.codec, "shuffle": _SHUFFLES[layout.codec][0]}
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

    def add(self, start: int, pieces: Sequence[bytes]) -> None:
        """Add the pieces of a row, the first of which is piece `start` of its sample."""
        row = len(self._chunks)
        block = _lay_out(pieces, self._position, self._table[row, start:])
        stored = block[:-CRC_BYTES]
        self._parts.append(block)
        self._chunks.append(
            ChunkRef(row=row, offset=self._position, length=len(stored), crc32c=_crc(stored))
        )
        self._position += len(block)

    def finish(self, path: str) -> EncodedShard:
        """Return the object: its chunks, then the index with its CRC32C."""
        data = self._table.tobytes()
        tail = data + _crc(data).to_bytes(CRC_BYTES, "little")
        return EncodedShard(path, b"".join(self._parts), tail, self._chunks)


def _compress_pieces(layout: ArrayLayout, array: Array) -> tuple[int, list[bytes]]:
    """Return the number of the first piece that is stored, and all pieces but those of padding.

    There is at least one, for a sample without any is one that failed.
    """
    if not layout.piece:
        return 0, [_compress(layout, layout.whole(array))]
    num = max(1, -(-len(array) // layout.piece))
    start = layout.pieces - num if layout.padded == "left" else 0
    parts = np.split(layout.whole(array), layout.pieces)
    return start, [_compress(layout, part) for part in parts[start : start + num]]


def _stored_pieces(layout: ArrayLayout, data: bytes) -> tuple[int, list[bytes]]:
    """Return the number of the first stored piece of a sample, and its pieces. Raises ValueError."""
    pieces = [
        bytes(p) for p in _split(layout, memoryview(data), layout.sample_bytes // layout.pieces)
    ]
    if not 0 < len(pieces) <= layout.pieces:
        raise ValueError(f"a sample has {len(pieces)} pieces, and the array's have {layout.pieces}")
    return layout.pieces - len(pieces) if layout.padded == "left" else 0, pieces


def _lay_out(pieces: Sequence[bytes], position: int, table: Array) -> bytes:
    """Return the bytes of pieces, each with its CRC32C, and enter in Zarr's index where each is."""
    parts = []
    for n, piece in enumerate(pieces):
        table[n] = position, len(piece) + CRC_BYTES
        position += len(piece) + CRC_BYTES
        parts += [piece, _crc(piece).to_bytes(CRC_BYTES, "little")]
    return b"".join(parts)


def _compress(layout: ArrayLayout, array: Array) -> bytes:
    # A view as unsigned integers, because blosc takes the width of its shuffle from the items.
    words = np.ascontiguousarray(array).reshape(-1).view(f"<u{ITEM_BYTES[layout.dtype]}")
    if layout.codec == "none":
        return bytes(words.tobytes())
    codec, (_, shuffle) = layout.codec.encode(), _SHUFFLES[layout.codec]
    return bytes(numcodecs.blosc.compress(words, codec, layout.level, shuffle))


def _decompress_pieces(layout: ArrayLayout, block: memoryview, target: Array) -> None:
    """Fill the bytes of a whole sample from its stored pieces. Raises ValueError, RuntimeError."""
    piece_bytes = len(target) // layout.pieces
    found = list(_split(layout, block, piece_bytes))
    start = (layout.pieces - len(found)) * piece_bytes if layout.padded == "left" else 0
    if len(found) > layout.pieces:
        raise ValueError(f"it has {len(found)} pieces")
    end = start + len(found) * piece_bytes
    target[:start] = 0
    target[end:] = 0
    for n, piece in enumerate(found):
        at = start + n * piece_bytes
        _decompress(layout, piece, target[at : at + piece_bytes])


def _split(layout: ArrayLayout, block: memoryview, piece_bytes: int) -> Iterator[memoryview]:
    """Yield the pieces of a sample's stored bytes: each says its length, or all have the same."""
    if layout.pieces == 1:
        yield block
        return
    start = 0
    while start < len(block):
        length = piece_bytes
        if layout.codec != "none":
            header = block[start : start + BLOSC_HEADER_BYTES]
            if len(header) < BLOSC_HEADER_BYTES:
                raise ValueError("it ends in the middle of a piece")
            length = struct.unpack_from("<I", header, 12)[0]
        if length < 1 or start + length > len(block):
            raise ValueError("it ends in the middle of a piece")
        yield block[start : start + length]
        start += length + CRC_BYTES


def _decompress(layout: ArrayLayout, block: memoryview, target: Array) -> None:
    if layout.codec == "none":
        if len(block) != len(target):
            raise ValueError(f"{len(block)} bytes are not one sample")
        target[:] = np.frombuffer(block, np.uint8)
        return
    # Blosc believes its header: one that lies would have it read past the block, or write too little.
    num_bytes, _, compressed_bytes = (
        struct.unpack_from("<3I", block, 4) if len(block) > BLOSC_HEADER_BYTES else (0,) * 3
    )
    if (num_bytes, compressed_bytes) != (target.nbytes, len(block)):
        raise ValueError("its header is of another length")
    numcodecs.blosc.decompress(block, target)


def _check_lengths(shard: ShardObject, chunks: Sequence[ChunkRef]) -> None:
    num_bytes = shard.layout.sample_bytes
    for chunk in chunks:
        if chunk.length != num_bytes:
            raise shard.damaged(chunk.row, f"{chunk.length} bytes are not one sample")


def _crc(data: bytes) -> int:
    return int(google_crc32c.value(data))
