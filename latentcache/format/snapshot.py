"""The snapshot: the published list of committed shards, from which readers take what there is."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.errors import CacheError
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest, read_manifest
from latentcache.format.paths import INDEX, sample_path, samples_folder, shard_of_sample_file
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.tables import read_sized_table, read_table, to_parquet
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Sample tables that are read at a time: they are small, so requests overlap to hide latency.
NUM_THREADS = 16


def build_index(storage: Storage, known: pa.Table | None = None) -> pa.Table:
    """Return the snapshot of what is committed now: INDEX_SCHEMA, sorted by bucket and shard.

    known: an earlier snapshot. Its rows are trusted where the sample table still has as many bytes, and
    only other shards' tables are read; rows whose table is gone are dropped.
    """
    buckets = sorted(bucket.name for bucket in read_manifest(storage).buckets)
    found = {
        (bucket, shard): size
        for bucket in buckets
        for shard, size in _committed(storage, bucket).items()
    }
    rows: dict[tuple[str, int], dict[str, Any] | None] = {}
    if known is not None:
        rows = {(row["bucket"], row["shard"]): row for row in known.to_pylist()}
    unknown = [place for place, size in found.items() if not _is_of(rows.get(place), size)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        rows.update(pool.map(lambda place: (place, _summarise(storage, *place)), unknown))
    there = [row for place in found if (row := rows[place]) is not None]
    return pa.Table.from_pylist(there, schema=INDEX_SCHEMA)


def current_index(storage: Storage) -> pa.Table:
    """Return what is committed now, reading only the tables that the published snapshot lacks."""
    return build_index(storage, known_index(storage))


def known_index(storage: Storage) -> pa.Table:
    """Read the published snapshot; an empty one where there is none yet, or it is damaged."""
    try:
        return read_index(storage)
    except CacheError:
        return INDEX_SCHEMA.empty_table()


def publish(storage: Storage, table: pa.Table) -> None:
    """Write the snapshot; readers see the old one or the new one."""
    storage.write(INDEX, to_parquet(table))


def read_index(storage: Storage) -> pa.Table:
    """Read the published snapshot. Raises CacheError where there is none yet."""
    url = redact(storage.url)
    try:
        table = read_table(storage, INDEX)
    except FileNotFoundError:
        raise CacheError(
            f"{url}: the cache has no snapshot yet ({INDEX}): its run has committed no shard, "
            f"or was killed before it could publish. Let it go on, or run: latentcache resume {url}"
        ) from None
    try:
        return _checked(table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise damaged(storage, INDEX, f"cannot be read ({error})") from error


def summarise(table: pa.Table, bucket: str, shard: int, table_bytes: int) -> dict[str, Any]:
    """Return the row of a shard whose sample table this is. stored_bytes: of its clips' chunks alone."""
    return {
        "bucket": bucket,
        "shard": shard,
        "num_clips": len(table),
        "num_ok": pc.sum(pc.equal(table["status"], "ok")).as_py() or 0,
        "stored_bytes": pc.sum(table["length"]).as_py() or 0,
        "table_bytes": table_bytes,
    }


def check_index(table: pa.Table, manifest: Manifest) -> None:
    """Raise ValueError where a snapshot lists shards that the cache does not have."""
    num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
    names = table["bucket"].combine_chunks().dictionary_encode()
    unknown = sorted(set(names.dictionary.to_pylist()) - num_shards.keys())
    if unknown:
        raise ValueError(f"it lists buckets that cache.json does not have: {', '.join(unknown)}")
    shards, buckets = table["shard"].to_numpy(), names.indices.to_numpy()
    limits = np.array([num_shards[name] for name in names.dictionary.to_pylist()], np.int64)
    if table.num_rows and (shards >= limits[buckets]).any():
        raise ValueError("it lists shards that cache.json does not have")
    if (table["num_clips"].to_numpy() > manifest.shard_clips).any():
        raise ValueError("it has shards of more clips than cache.json says")


def _checked(table: pa.Table) -> pa.Table:
    """Return the snapshot where its numbers are possible, and its shards are in order."""
    num_ok, num_clips, shard, stored_bytes = (
        table[name].to_numpy() for name in ("num_ok", "num_clips", "shard", "stored_bytes")
    )
    if ((num_ok < 0) | (num_ok > num_clips) | (shard < 0) | (stored_bytes < 0)).any():
        raise ValueError("it has counts that cannot be")
    bucket = table["bucket"]
    same = pc.equal(bucket.slice(1), bucket.slice(0, max(0, len(bucket) - 1))).to_numpy()
    if (same & (np.diff(shard) <= 0)).any():
        raise ValueError("its shards are not in order, or twice in it")
    return table


def _committed(storage: Storage, bucket: str) -> dict[int, int]:
    """Return {shard: bytes} of the sample tables that exist, in order."""
    files = storage.list(samples_folder(bucket)).items()
    sizes = {shard_of_sample_file(name): size for name, size in files}
    return {shard: sizes[shard] for shard in sorted(s for s in sizes if s is not None)}


def _is_of(row: Mapping[str, Any] | None, table_bytes: int) -> bool:
    return row is not None and row["table_bytes"] == table_bytes


def _summarise(storage: Storage, bucket: str, shard: int) -> dict[str, Any] | None:
    """Return a shard's row; None where another run is just replacing it."""
    path = sample_path(bucket, shard)
    try:
        table, num_bytes = read_sized_table(storage, path, ["status", "length"])
    except FileNotFoundError:
        return None
    return summarise(table, bucket, shard, num_bytes)
