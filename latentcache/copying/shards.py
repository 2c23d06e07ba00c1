"""Planned copies are made: each shard is put together from the rows that it copies, and committed.

It takes no encoder, and the same shard may be copied by several runs: the first that creates the object
wins, and the others adopt it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from latentcache.copying.stored_rows import StoredRow, read_rows
from latentcache.core.records import RETIRED, ClipId, Shard, ShardId, ShardReport
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CorruptionError
from latentcache.format.commit import adopt_shard, commit_chunks
from latentcache.format.manifest import Manifest
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage

#: Bounds on shards in memory at a time: their bytes together, and their number.
MEMORY_BYTES = 1 << 30
NUM_THREADS = 8
#: A shard is in memory as its chunks, as the object that they make, and as what is being written.
TIMES_IN_MEMORY = 3


@dataclass(frozen=True, kw_only=True)
class NotCopied:
    """A shard that could not be copied, for what it is copied from is damaged or gone."""

    shard: ShardId
    error: CorruptionError


def pending_copies(planned: PlannedCache, missing: Sequence[ShardId]) -> list[ShardId]:
    """Return the missing shards whose rows are to be copied from others."""
    return [shard for shard in missing if planned.plan.origins(shard)]


def copy_shards(
    planned: PlannedCache, shards: Sequence[ShardId]
) -> Generator[ShardReport | NotCopied, None, None]:
    """Copy shards of `pending_copies` and commit them, in order. Raises StorageError."""
    storage, manifest = planned.storage, planned.manifest
    threads = min(num_threads(manifest, shard.bucket) for shard in shards)

    def copy(item: tuple[Shard, Mapping[int, ClipId]]) -> ShardReport | NotCopied:
        try:
            return copy_shard(storage, manifest, *item)
        except CorruptionError as error:
            return NotCopied(shard=item[0].id, error=error)

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(shards)
        while window := list(itertools.islice(waiting, 4 * threads)):
            plan = planned.plan  # not for several threads
            yield from pool.map(copy, [(plan.shard(s), plan.origins(s)) for s in window])


def copy_shard(
    storage: Storage, manifest: Manifest, shard: Shard, origins: Mapping[int, ClipId]
) -> ShardReport:
    """Copy one shard and commit it, or adopt what another run has committed. Raises CorruptionError."""
    shard_format, layout = get_format(manifest.format), manifest.layouts()[shard.bucket.name]
    adopted = adopt_shard(storage, shard_format, layout, shard, manifest.fingerprint)
    if adopted is not None:
        return adopted
    stored = _read(storage, manifest, shard, origins)
    rows = [stored.get(row) for row in range(len(shard.clips))]
    chunks = [None if row is None else row.chunk for row in rows]
    results = [RETIRED if row is None else row.result for row in rows]
    try:
        return commit_chunks(
            storage, shard_format, layout, shard, chunks, results, manifest.fingerprint
        )
    except ValueError as error:
        raise CorruptionError(f"shard {shard.name} cannot be copied: {error}") from error


def num_threads(manifest: Manifest, bucket: str) -> int:
    """Return how many shards of a bucket may be in memory at a time."""
    shard_bytes = _shard_bytes(manifest.layouts()[bucket]) * TIMES_IN_MEMORY
    return max(1, min(NUM_THREADS, MEMORY_BYTES // shard_bytes))


def _shard_bytes(layout: ArrayLayout) -> int:
    rows = min(layout.shard_rows, layout.num_rows)
    return rows * math.prod(layout.shape) * ITEM_BYTES[layout.dtype]


def _read(
    storage: Storage, manifest: Manifest, shard: Shard, origins: Mapping[int, ClipId]
) -> Mapping[int, StoredRow]:
    """Return what the rows of a shard that count are copied from, by row. Raises CorruptionError."""
    wanted: dict[ShardId, dict[int, int]] = {}
    for row, clip in enumerate(shard.clips):
        if row in shard.retired:
            continue
        if row not in origins:
            raise CorruptionError(f"shard {shard.name}: clip {clip.key!r} has nothing to copy from")
        origin = origins[row]
        wanted.setdefault(origin.shard, {})[origin.row] = row
    found: dict[int, StoredRow] = {}
    for origin_shard, places in wanted.items():
        for old, stored in read_rows(storage, manifest, origin_shard, [*places]).items():
            found[places[old]] = stored
            if stored.key != shard.clips[places[old]].key:
                raise CorruptionError(
                    f"shard {shard.name}: row {old} of shard {origin_shard.name} is clip {stored.key!r}, "
                    f"and should be {shard.clips[places[old]].key!r}"
                )
    return found
