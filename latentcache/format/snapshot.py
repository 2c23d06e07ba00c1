"""The snapshot: the published list of committed shards and of their rows that count.

It is a function of a generation and of the shards that are committed, so anyone can make it again. Rows
of an earlier snapshot stay true as long as no generation retires rows of their shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.errors import CacheError
from latentcache.format.changes import Changes, Standing, read_changes, without_rows
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest
from latentcache.format.paths import INDEX, sample_path, samples_folder, shard_of_sample_file
from latentcache.format.schemas import INDEX_FACTS, INDEX_SCHEMA
from latentcache.format.tables import read_sized_table, read_table, to_parquet
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Sample tables that are read at a time: they are small, so requests overlap to hide latency.
NUM_THREADS = 16

Row = Mapping[str, Any]


def build_index(storage: Storage, manifest: Manifest, known: Iterable[Row] = ()) -> pa.Table:
    """Return the snapshot of what is committed now: INDEX_SCHEMA, sorted by bucket and shard.

    known: rows of earlier snapshots or of commits; only sample tables that they lack are read.
    """
    there = committed_places(storage, manifest)
    rows = {shard_of(row): row for row in known}
    found = {shard: rows.get(shard) for shard in there}
    return make_index(storage, manifest, read_changes(storage, manifest), found)


def make_index(
    storage: Storage, manifest: Manifest, changes: Changes, rows: Mapping[ShardId, Row | None]
) -> pa.Table:
    """Return the snapshot of some committed shards. rows: what is known of each; None is read.

    Shards none of whose rows counts are left out: their files may be cleaned away. Rows that are copied
    count until the copy's shard is one of these.
    """
    standing = changes.among(rows)
    retired = standing.retired_shards(manifest)
    rows = {shard: row for shard, row in rows.items() if shard not in retired}

    def complete(item: tuple[ShardId, Row | None]) -> Row:
        shard, row = item
        if row is None or sorted(row["retired"] or ()) != standing.rows(shard):
            row = _summarise(storage, shard, standing)
        return {**row, "columns": standing.columns.get(shard)}

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(complete, sorted(rows.items(), key=lambda item: item[0])))
    return to_index(found, manifest)


def to_index(rows: Iterable[Row], manifest: Manifest) -> pa.Table:
    """Return rows as a snapshot of the generation that a manifest ends with."""
    ordered = sorted(rows, key=shard_of)
    table = pa.Table.from_pylist([dict(row) for row in ordered], schema=INDEX_SCHEMA)
    facts = {"generation": len(manifest.generations), "fingerprint": manifest.fingerprint}
    return table.replace_schema_metadata({INDEX_FACTS: json.dumps(facts)})


def shard_of(row: Row) -> ShardId:
    """Return the shard of a row of the snapshot."""
    return ShardId(row["bucket"], row["shard"])


def current_index(storage: Storage, manifest: Manifest) -> pa.Table:
    """Return what is committed now, reading only the tables that the published snapshot lacks."""
    return build_index(storage, manifest, known_rows(storage, manifest))


def known_rows(storage: Storage, manifest: Manifest) -> list[dict[str, Any]]:
    """Return the rows of the published snapshot; none if there is none yet, or it is damaged."""
    try:
        table = read_index(storage)
        check_index(table, manifest)
    except (CacheError, ValueError):
        return []
    return table.to_pylist()  # type: ignore[no-any-return]


def publish(storage: Storage, table: pa.Table) -> None:
    """Write the snapshot; readers see the old one or the new one."""
    facts = json.loads(table.schema.metadata[INDEX_FACTS.encode()])
    storage.write(INDEX, to_parquet(table, {INDEX_FACTS: facts}))


def read_index(storage: Storage) -> pa.Table:
    """Read the published snapshot. Raises CacheError if there is none yet."""
    url = redact(storage.url)
    try:
        table = read_table(storage, INDEX)
    except FileNotFoundError:
        raise CacheError(
            f"{url}: the cache has no snapshot yet ({INDEX}): its run has committed no shard, "
            f"or was killed before it could publish. Let it go on, or run: latentcache resume {url}"
        ) from None
    try:
        generation_of(table)
        return _checked(table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA), table.schema.metadata)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise damaged(storage, INDEX, f"cannot be read ({error})") from error


def generation_of(table: pa.Table) -> int:
    """Return the number of the generation that a snapshot shows. Raises ValueError."""
    return int(_facts(table)["generation"])


def _facts(table: pa.Table) -> dict[str, Any]:
    try:
        facts = json.loads((table.schema.metadata or {})[INDEX_FACTS.encode()])
        sound = type(facts["generation"]) is int and isinstance(facts["fingerprint"], str)
    except (KeyError, TypeError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise ValueError("it does not say which generation it shows")
    return facts  # type: ignore[no-any-return]


def summarise(
    table: pa.Table, shard: ShardId, table_bytes: int, standing: Standing
) -> dict[str, Any]:
    """Return the row of a shard whose sample table this is. stored_bytes: of its ok clips' chunks."""
    retired = standing.rows(shard)
    counted = without_rows(table, retired)
    ok = counted.filter(pc.equal(counted["status"], "ok"))
    return {
        "bucket": shard.bucket,
        "shard": shard.number,
        "num_clips": counted.num_rows,
        "num_ok": ok.num_rows,
        "stored_bytes": pc.sum(ok["length"]).as_py() or 0,
        "table_bytes": table_bytes,
        "retired": retired or None,
        "columns": standing.columns.get(shard),
    }


def check_index(table: pa.Table, manifest: Manifest) -> None:
    """Raise ValueError if a snapshot lists shards that the cache does not have, or is of another one."""
    facts = _facts(table)
    if facts["fingerprint"] != manifest.fingerprint:
        raise ValueError("it is of another cache")
    if not 0 <= facts["generation"] <= len(manifest.generations):
        raise ValueError(
            f"it shows generation {facts['generation']}, and the cache has "
            f"{len(manifest.generations)}"
        )
    folders = {generation.folder for generation in manifest.generations}
    if set(pc.unique(table["columns"]).drop_null().to_pylist()) - folders:
        raise ValueError("it names changed columns of a generation that the cache does not have")
    num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
    names = table["bucket"].combine_chunks().dictionary_encode()
    unknown = sorted(set(names.dictionary.to_pylist()) - num_shards.keys())
    if unknown:
        raise ValueError(f"it lists buckets that are not planned: {', '.join(unknown)}")
    shards, buckets = table["shard"].to_numpy(), names.indices.to_numpy()
    limits = np.array([num_shards[name] for name in names.dictionary.to_pylist()], np.int64)
    if table.num_rows and (shards >= limits[buckets]).any():
        raise ValueError("it lists shards that are not planned")
    if (table["num_clips"].to_numpy() > manifest.shard_clips).any():
        raise ValueError("it has shards of more clips than cache.json says")


def _checked(table: pa.Table, metadata: Mapping[bytes, bytes]) -> pa.Table:
    """Return the snapshot if its numbers are possible, and its shards are in order."""
    num_ok, num_clips, shard, stored_bytes = (
        table[name].to_numpy() for name in ("num_ok", "num_clips", "shard", "stored_bytes")
    )
    if ((num_ok < 0) | (num_ok > num_clips) | (shard < 0) | (stored_bytes < 0)).any():
        raise ValueError("it has counts that cannot be")
    bucket = table["bucket"]
    same = pc.equal(bucket.slice(1), bucket.slice(0, max(0, len(bucket) - 1))).to_numpy()
    if (same & (np.diff(shard) <= 0)).any():
        raise ValueError("its shards are not in order, or twice in it")
    return table.replace_schema_metadata(metadata)


def committed_shards(storage: Storage, bucket: str) -> list[int]:
    """Return the shards of a bucket that have a sample table, in order."""
    numbers = map(shard_of_sample_file, storage.list(samples_folder(bucket)))
    return sorted(number for number in numbers if number is not None)


def committed_places(storage: Storage, manifest: Manifest) -> list[ShardId]:
    """Return the planned shards that have a sample table, by bucket and in order."""
    return [
        ShardId(bucket.name, number)
        for bucket in manifest.buckets
        for number in committed_shards(storage, bucket.name)
        if number < bucket.num_shards
    ]


def _summarise(storage: Storage, shard: ShardId, standing: Standing) -> dict[str, Any]:
    path = sample_path(*shard)
    try:
        table, num_bytes = read_sized_table(storage, path, ["row", "status", "length"])
    except FileNotFoundError:
        raise damaged(storage, path, "is gone since it was listed") from None
    return summarise(table, shard, num_bytes, standing)
