"""Zarr's index at the end of a shard object: where each piece of each sample is. Read once, and kept.

https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentcache.core.dtypes import Array
from latentcache.core.lru import Lru
from latentcache.core.records import ChunkRef
from latentcache.format.shards.pieces import CRC_BYTES, crc32c
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.shards.ranges import MISSING, ShardObject

INDEX_ENTRY_BYTES = 16
#: Offset and length of an absent chunk in a shard index.
ABSENT = 2**64 - 1
#: Indices kept in memory. One of 64 clips in 90 pieces each takes 92 kB.
MAX_INDICES = 1024
#: The CRC32C of any bytes that are followed by their own CRC32C.
RESIDUE = 0x48674BC7


def index_bytes(layout: ArrayLayout) -> int:
    """Return the length of the index, which is the same for all shards of an array."""
    return INDEX_ENTRY_BYTES * layout.shard_samples * layout.pieces + CRC_BYTES


def piece_ref(chunk: ChunkRef, entry: Array) -> ChunkRef:
    """Return where a piece and its CRC32C are: as a chunk, so that they are read and checked as one is."""
    return ChunkRef(row=chunk.row, offset=int(entry[0]), length=int(entry[1]), crc32c=RESIDUE)


class Indices:
    """The indices that were read last, by object. Safe for threads."""

    def __init__(self, max_indices: int = MAX_INDICES) -> None:
        self._kept: Lru[tuple[str, str], Array] = Lru(max_indices)

    def read(self, shard: ShardObject, chunks: Sequence[ChunkRef]) -> Array:
        """Return (offset, length) of pieces, uint64 [samples, pieces, 2]. Raises CorruptionError.

        chunks: those that are wanted. It is read again if it does not fit them: the object has changed.
        """
        key = (shard.storage.absolute_url, shard.path)
        kept = self._kept.get(key)
        if kept is not None and _misfit(kept, chunks) is None:
            return kept
        table = _read(shard, chunks[0].row)
        if (misfit := _misfit(table, chunks)) is not None:
            raise shard.damaged(misfit.row, "its index says other places than its sample table")
        self._kept.put(key, table)
        return table


def _read(shard: ShardObject, row: int) -> Array:
    layout, length = shard.layout, index_bytes(shard.layout)
    try:
        start = shard.storage.size(shard.path) - length
    except FileNotFoundError:
        raise shard.damaged(row, MISSING) from None
    data = shard.storage.read_ranges(shard.path, [(max(0, start), length)])[0]
    if len(data) < length or start < 0:
        raise shard.damaged(row, "the object is too short for its index")
    if crc32c(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise shard.damaged(row, "its index fails its CRC32C")
    shape = (layout.shard_samples, layout.pieces, 2)
    return np.frombuffer(data, "<u8", count=length // 8).reshape(shape)


def _misfit(table: Array, chunks: Sequence[ChunkRef]) -> ChunkRef | None:
    """Return the first chunk whose pieces do not lie one after the other just where it is."""
    for chunk in chunks:
        starts, lengths = table[chunk.row].T
        ends = starts + lengths  # those of absent entries wrap around, and fit nothing
        last = ends[-1] == chunk.offset + chunk.length + CRC_BYTES
        if starts[0] != chunk.offset or not last or (starts[1:] != ends[:-1]).any():
            return chunk
    return None
