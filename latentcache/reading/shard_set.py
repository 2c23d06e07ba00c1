"""Which shards a snapshot has, as bits: what a loader's state keeps of a cache that is still growing."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentcache.errors import CacheError
from latentcache.format.manifest import BucketInfo

#: One bit per shard of the plan, buckets by name.
Bits = npt.NDArray[np.uint8]


def to_bits(buckets: Sequence[BucketInfo], index: pa.Table) -> Bits:
    """Return which shards of the plan are in a snapshot."""
    bits = np.zeros(sum(bucket.num_shards for bucket in buckets), np.bool_)
    bits[_numbers(buckets, index)] = True
    return np.packbits(bits)


def rows_of(buckets: Sequence[BucketInfo], index: pa.Table, bits: Bits) -> pa.Table | None:
    """Return the rows of a snapshot that are in a set; None if the snapshot lacks some of the set."""
    wanted = np.unpackbits(bits).astype(np.bool_)
    chosen = wanted[_numbers(buckets, index)]
    if int(wanted.sum()) != int(chosen.sum()):
        return None
    return index.filter(pa.array(chosen))


def to_text(bits: Bits) -> str:
    """Return bits as text for JSON: at worst two bytes per shard, and very few if all shards are there."""
    return base64.b64encode(zlib.compress(bits.tobytes())).decode()


def from_text(buckets: Sequence[BucketInfo], text: str) -> Bits:
    """Read what `to_text` wrote of the same plan. Raises CacheError."""
    num_bytes = -(-sum(bucket.num_shards for bucket in buckets) // 8)
    try:
        packed = base64.b64decode(text, validate=True)
        data = zlib.decompressobj().decompress(packed, num_bytes + 1)
    except (binascii.Error, ValueError, TypeError, zlib.error) as error:
        raise CacheError(f"the state's set of shards is damaged: {error}") from None
    if len(data) != num_bytes:
        raise CacheError("the state's set of shards is of another plan, or damaged")
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
