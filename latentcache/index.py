"""The snapshot: the published list of committed shards, from which readers take what there is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.errors import CacheError, CorruptionError
from latentcache.manifest import read_manifest
from latentcache.storage import Storage
from latentcache.tables import (
    INDEX,
    INDEX_SCHEMA,
    from_parquet,
    sample_path,
    samples_folder,
    shard_of_sample_file,
    to_parquet,
)
from latentcache.urls import redact

#: Sample tables that are read at a time: they are small, so requests overlap to hide latency.
NUM_THREADS = 16


def build_index(storage: Storage, known: pa.Table | None = None) -> pa.Table:
    """Return the snapshot of what is committed now: INDEX_SCHEMA, sorted by bucket and shard.

    known: an earlier snapshot. Its rows are trusted and only other shards' tables are read, so
    leave out shards that were encoded again since; rows whose table is gone are dropped.
    """
    buckets = sorted(bucket.name for bucket in read_manifest(storage).buckets)
    found = [(bucket, shard) for bucket in buckets for shard in _committed(storage, bucket)]
    rows = {} if known is None else {(r["bucket"], r["shard"]): r for r in known.to_pylist()}
    unknown = [place for place in found if place not in rows]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        rows.update(pool.map(lambda place: (place, _summarise(storage, *place)), unknown))
    return pa.Table.from_pylist([rows[place] for place in found], schema=INDEX_SCHEMA)


def publish(storage: Storage, table: pa.Table) -> None:
    """Write the snapshot; readers see the old one or the new one."""
    storage.write(INDEX, to_parquet(table))


def read_index(storage: Storage) -> pa.Table:
    """Read the published snapshot. Raises CacheError where there is none yet."""
    url = redact(storage.url)
    try:
        data = storage.read(INDEX)
    except FileNotFoundError:
        raise CacheError(
            f"{url}: the cache has no snapshot yet ({INDEX}): its run has committed no shard, "
            f"or was killed before it could publish. Let it go on, or run: latentcache resume {url}"
        ) from None
    try:
        return from_parquet(data).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise CorruptionError(
            f"{url}/{INDEX} cannot be read ({error}). It holds nothing that the sample tables do "
            f"not: run `latentcache resume {url}` to write it anew."
        ) from error


def _committed(storage: Storage, bucket: str) -> list[int]:
    """Return the shards whose sample tables exist, in order."""
    names = storage.list(samples_folder(bucket))
    shards = (shard_of_sample_file(name) for name in names)
    return sorted(shard for shard in shards if shard is not None)


def _summarise(storage: Storage, bucket: str, shard: int) -> dict[str, Any]:
    """Return a shard's row. stored_bytes: of its clips' chunks alone."""
    path = sample_path(bucket, shard)
    try:
        table = from_parquet(storage.read(path), columns=["status", "length"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptionError(
            f"{redact(storage.url)}/{path} cannot be read ({error}), so what it committed is "
            "unknown. Delete it and resume, to encode the shard again."
        ) from error
    return {
        "bucket": bucket,
        "shard": shard,
        "num_clips": len(table),
        "num_ok": pc.sum(pc.equal(table["status"], "ok")).as_py() or 0,
        "stored_bytes": pc.sum(table["length"]).as_py() or 0,
    }
