"""Which shards a snapshot has, as bits: what a loader's state keeps of a cache that is still growing."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentcache.core.records import ShardId
from latentcache.errors import CacheError
from latentcache.format.manifest import MAX_SHARDS, BucketInfo

#: One bit per shard of the plan, buckets by name.
Bits = npt.NDArray[np.uint8]


def to_bits(buckets: Sequence[BucketInfo], index: pa.Table) -> Bits:
    """Return which shards of the plan are in a snapshot."""
    bits = np.zeros(sum(bucket.num_shards for bucket in buckets), np.bool_)
    bits[_numbers(buckets, index)] = True
    return np.packbits(bits)


def shards_of(buckets: Sequence[BucketInfo], bits: Bits) -> list[ShardId]:
    """Return the shards of a set, by bucket and number."""
    wanted = np.unpackbits(bits).astype(np.bool_)
    found, first = [], 0
    for bucket in sorted(buckets, key=lambda bucket: bucket.name):
        numbers = np.flatnonzero(wanted[first : first + bucket.num_shards])
        found += [ShardId(bucket.name, int(number)) for number in numbers]
        first += bucket.num_shards
    return found


def to_text(bits: Bits) -> str:
    """Return bits as text for JSON: at worst two bytes per shard, and very few if all shards are there."""
    return base64.b64encode(zlib.compress(bits.tobytes())).decode()


def from_text(text: str, most: int = MAX_SHARDS) -> Bits:
    """Read what `to_text` wrote. Raises CacheError.

    most: how many bits there may be, where that is more than a cache may have shards.
    """
    most_bytes = (max(most, MAX_SHARDS) + 7) // 8
    try:
        packed = base64.b64decode(text, validate=True)
        stream = zlib.decompressobj()
        data = stream.decompress(packed, most_bytes + 1)
    except (binascii.Error, ValueError, TypeError, zlib.error) as error:
        raise CacheError(f"the state's set of shards is damaged: {error}") from None
    if len(data) > most_bytes or not stream.eof:
        raise CacheError("the state's set of shards is damaged: it is cut short, or far too long")
    return np.frombuffer(data, np.uint8).copy()


def _numbers(buckets: Sequence[BucketInfo], index: pa.Table) -> npt.NDArray[np.int64]:
    """Return each shard's number in the plan, for the shards of a snapshot."""
    ordered = sorted(buckets, key=lambda bucket: bucket.name)
    names = index["bucket"].combine_chunks().dictionary_encode()
    ends = np.cumsum([bucket.num_shards for bucket in ordered])
    firsts = {b.name: int(end) - b.num_shards for b, end in zip(ordered, ends, strict=True)}
    first = np.array([firsts[name] for name in names.dictionary.to_pylist()], np.int64)
    shards: npt.NDArray[np.int64] = index["shard"].to_numpy()
    return first[names.indices.to_numpy()] + shards if len(shards) else shards
