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
from typing import cast

from latentcache.copying.parents import Parents
from latentcache.copying.stored_rows import OpenCache, StoredRow, read_rows
from latentcache.core.dtypes import Array
from latentcache.core.records import RETIRED, ClipId, Shard, ShardId, ShardReport
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CacheError, CorruptionError
from latentcache.format.commit import adopt_shard, commit_chunks, commit_shard
from latentcache.format.manifest import Manifest
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout, StoredChunk
from latentcache.format.snapshot import committed_places
from latentcache.planning.planned import PlannedCache

#: Bounds on shards in memory at a time: their bytes together, and their number.
MEMORY_BYTES = 1 << 30
NUM_THREADS = 8
#: A shard is in memory as its chunks, as the object that they make, and as what is being written.
TIMES_IN_MEMORY = 3
#: Shards per thread whose clips are read from the plan at a time.
AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a row is copied from. cache: one of few; they are told apart as objects."""

    cache: OpenCache
    clip: ClipId


@dataclass(frozen=True, kw_only=True)
class NotCopied:
    """A shard that could not be copied, for what it is copied from is damaged or gone.

    is_lost: its clips can only be encoded. Else its old rows are there and count: encoding, which may fail,
    could replace sound ones; `verify --repair` plans the damaged ones again, and the others are copied.
    """

    shard: ShardId
    error: CacheError
    is_lost: bool


def pending_copies(planned: PlannedCache, missing: Sequence[ShardId]) -> list[ShardId]:
    """Return the missing shards whose rows are to be copied from others."""
    plan = planned.plan
    return [shard for shard in missing if plan.origins(shard) or plan.imports(shard)]


def copy_shards(
    planned: PlannedCache, shards: Sequence[ShardId], parents: Parents
) -> Generator[ShardReport | NotCopied, None, None]:
    """Copy shards of `pending_copies` and commit them, in order. Raises StorageError."""
    own = OpenCache(storage=planned.storage, manifest=planned.manifest)
    threads = min(num_threads(planned.manifest, shard.bucket) for shard in shards)

    def copy(shard: Shard, found: Mapping[int, Origin] | CacheError) -> ShardReport | NotCopied:
        try:
            if isinstance(found, CacheError):
                raise found
            return copy_shard(own, shard, found)
        except CacheError as error:
            return NotCopied(shard=shard.id, error=error, is_lost=_is_lost(own, found))

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(shards)
        while window := list(itertools.islice(waiting, AHEAD * threads)):
            # Here, for the plan and the parents are not for several threads.
            tasks = [planned.plan.shard(shard) for shard in window]
            origins = [_origins(planned, own, shard, parents) for shard in window]
            yield from pool.map(copy, tasks, origins)


def _is_lost(own: OpenCache, origins: Mapping[int, Origin] | CacheError) -> bool:
    """Tell whether rows have no original in the cache: it is another cache's, or was cleaned away."""
    if isinstance(origins, CacheError):
        return True
    committed = set(committed_places(own.storage, own.manifest))
    return any(o.cache is not own or o.clip.shard not in committed for o in origins.values())


def _origins(
    planned: PlannedCache, own: OpenCache, shard: ShardId, parents: Parents
) -> Mapping[int, Origin] | CacheError:
    """Return what a shard's rows are copied from, or why that is not known."""
    try:
        found = {
            row: Origin(cache=own, clip=clip) for row, clip in planned.plan.origins(shard).items()
        }
        for row, imported in planned.plan.imports(shard).items():
            found[row] = Origin(cache=parents.open(imported.parent), clip=imported.clip)
    except CacheError as error:
        return error
    return found


def copy_shard(own: OpenCache, shard: Shard, origins: Mapping[int, Origin]) -> ShardReport:
    """Copy one shard and commit it, or adopt what another run has committed.

    Latents are decompressed and compressed again only if a row comes from a cache of another format.
    Raises CorruptionError.
    """
    storage, manifest = own.storage, own.manifest
    shard_format, layout = get_format(manifest.format), manifest.layouts()[shard.bucket.name]
    adopted = adopt_shard(storage, shard_format, layout, shard, manifest.fingerprint)
    if adopted is not None:
        return adopted
    decompress = any(origin.cache.chunk_form != own.chunk_form for origin in origins.values())
    stored = _read(shard, origins, decompress)
    rows = [stored.get(row) for row in range(len(shard.clips))]
    latents = [None if row is None else row.latents for row in rows]
    results = [RETIRED if row is None else row.result for row in rows]
    where = (storage, shard_format, layout, shard)
    if decompress:
        arrays = cast("list[Array | None]", latents)
        return commit_shard(*where, arrays, results, manifest.fingerprint)
    try:
        chunks = cast("list[StoredChunk | None]", latents)
        return commit_chunks(*where, chunks, results, manifest.fingerprint)
    except ValueError as error:
        raise CorruptionError(f"shard {shard.name} cannot be copied: {error}") from error


def num_threads(manifest: Manifest, bucket: str) -> int:
    """Return how many shards of a bucket may be in memory at a time."""
    shard_bytes = _shard_bytes(manifest.layouts()[bucket]) * TIMES_IN_MEMORY
    return max(1, min(NUM_THREADS, MEMORY_BYTES // shard_bytes))


def _shard_bytes(layout: ArrayLayout) -> int:
    rows = min(layout.shard_rows, layout.num_rows)
    return rows * math.prod(layout.shape) * ITEM_BYTES[layout.dtype]


def _read(shard: Shard, origins: Mapping[int, Origin], decompress: bool) -> Mapping[int, StoredRow]:
    """Return what the rows of a shard that count are copied from, by row. Raises CorruptionError."""
    caches = {id(origin.cache): origin.cache for origin in origins.values()}
    wanted: dict[tuple[int, ShardId], dict[int, int]] = {}
    for row, clip in enumerate(shard.clips):
        if row in shard.retired:
            continue
        if row not in origins:
            raise CorruptionError(f"shard {shard.name}: clip {clip.key!r} has nothing to copy from")
        origin = origins[row]
        wanted.setdefault((id(origin.cache), origin.clip.shard), {})[origin.clip.row] = row
    found: dict[int, StoredRow] = {}
    for (cache, from_shard), places in wanted.items():
        rows = read_rows(caches[cache], from_shard, [*places], decompress=decompress)
        for old, stored in rows.items():
            found[places[old]] = stored
            if stored.key != shard.clips[places[old]].key:
                raise CorruptionError(
                    f"shard {shard.name}: row {old} of shard {from_shard.name} is clip {stored.key!r}, "
                    f"and should be {shard.clips[places[old]].key!r}"
                )
    return found
