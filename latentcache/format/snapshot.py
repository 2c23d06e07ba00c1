"""The snapshot: the published list of committed shards and of their rows that count.

It is a function of a generation and of the shards that are committed, so anyone can make it again. Rows
of an earlier snapshot stay true as long as no generation retires rows of their shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.records import ShardId
from latentcache.errors import CacheError
from latentcache.format.changes import Changes, Standing, read_changes, without_rows
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest, refresh
from latentcache.format.paths import (
    INDEX,
    sample_path,
    sample_prefixes,
    samples_folder,
    shard_of_sample_file,
)
from latentcache.format.rounds import Rounds
from latentcache.format.schemas import INDEX_FACTS, INDEX_SCHEMA
from latentcache.format.tables import read_sized_table, read_table, to_parquet
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Sample tables that are read at a time: they are small, so requests overlap to hide latency.
NUM_THREADS = 16

Row = Mapping[str, Any]
#: Gives rows of some shards, as far as it has them.
Find = Callable[[Sequence[ShardId]], Iterable[Row]]
Numbers = npt.NDArray[np.int64]


def build_index(
    storage: Storage,
    manifest: Manifest,
    known: pa.Table | None = None,
    find: Find = lambda _: (),
) -> pa.Table:
    """Return the snapshot of what is committed now: INDEX_SCHEMA, sorted by bucket and shard.

    known: rows of earlier snapshots or of commits, of which the first of a shard counts. find: gives rows
    of shards that these lack. Only sample tables of shards that neither has are read.
    """
    there = committed_numbers(storage, manifest)
    known = INDEX_SCHEMA.empty_table() if known is None else known
    return index_of(storage, manifest, read_changes(storage, manifest), there, known, find)


def index_of(
    storage: Storage,
    manifest: Manifest,
    changes: Changes,
    there: Mapping[str, Numbers],
    known: pa.Table,
    find: Find = lambda _: (),
) -> pa.Table:
    """Return the snapshot of some committed shards, the numbers of each bucket's: see `build_index`.

    Rows that no generation has touched are taken over as they are, in Arrow: there may be a million.
    """
    standing = changes.among(set(_shards(there)) if changes.copies else ())
    names = {name: number for number, name in enumerate(there)}
    keys, firsts = np.unique(_keys(known, names), return_index=True)
    wanted = np.concatenate(
        [np.zeros(0, np.int64), *((names[name] << 32) | found for name, found in there.items())]
    )
    places = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    is_known = keys[places] == wanted if len(keys) else np.zeros(len(wanted), bool)
    rows = known.take(pa.array(firsts[places[is_known]]))
    touched = [
        (names[shard.bucket] << 32) | shard.number
        for shard in (*standing.retired, *standing.columns)
        if shard.bucket in names
    ]
    is_plain = pc.and_(pc.is_null(rows["retired"]), pc.is_null(rows["columns"])).to_numpy()
    is_plain &= ~np.isin(wanted[is_known], np.array(touched, np.int64))
    rest: dict[ShardId, Row | None] = {
        shard_of(row): row for row in rows.filter(pa.array(~is_plain)).to_pylist()
    }
    buckets = list(names)
    unknown = [ShardId(buckets[key >> 32], key & 0xFFFFFFFF) for key in wanted[~is_known].tolist()]
    rest |= dict.fromkeys(unknown)
    rest |= {shard_of(row): row for row in find(unknown)}
    plain = rows.filter(pa.array(is_plain)).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    table = pa.concat_tables([plain, index_rows(storage, manifest, standing, rest)])
    return _marked(table.sort_by([("bucket", "ascending"), ("shard", "ascending")]), manifest)


def _keys(table: pa.Table, names: Mapping[str, int]) -> Numbers:
    """Return a number for the shard of each row, negative ones for other buckets."""
    bucket = table["bucket"].combine_chunks().dictionary_encode()
    numbers = np.array([names.get(name, -1) for name in bucket.dictionary.to_pylist()], np.int64)
    at = bucket.indices.to_numpy(zero_copy_only=False)
    found: Numbers = (numbers[at] << 32) | table["shard"].to_numpy().astype(np.int64)
    return found


def _shards(there: Mapping[str, Numbers]) -> list[ShardId]:
    return [ShardId(name, number) for name, found in there.items() for number in found.tolist()]


def standing_of(changes: Changes, index: pa.Table) -> Standing:
    """Return which rows count if the shards of a snapshot are committed."""
    return changes.among(set(_shards(numbers_in(index))) if changes.copies else ())


def numbers_in(index: pa.Table) -> dict[str, Numbers]:
    """Return the shards of a snapshot's rows, by bucket, each once and in order."""
    return {
        name: np.unique(
            index.filter(pc.equal(index["bucket"], name))["shard"].to_numpy().astype(np.int64)
        )
        for name in sorted(pc.unique(index["bucket"]).to_pylist())
    }


def make_index(
    storage: Storage, manifest: Manifest, changes: Changes, rows: Mapping[ShardId, Row | None]
) -> pa.Table:
    """Return the snapshot of some committed shards. rows: what is known of each; None is read.

    Shards none of whose rows counts are left out: their files may be cleaned away. Rows that are copied
    count until the copy's shard is one of these.
    """
    return index_rows(storage, manifest, changes.among(rows), rows)


def index_rows(
    storage: Storage, manifest: Manifest, standing: Standing, rows: Mapping[ShardId, Row | None]
) -> pa.Table:
    """Do as `make_index`. standing: which rows count, whatever shards beside these are committed."""
    retired = standing.retired_shards(manifest)
    rows = {shard: row for shard, row in rows.items() if shard not in retired}

    found = {
        shard: row
        for shard, row in rows.items()
        if row is not None and sorted(row["retired"] or ()) == standing.rows(shard)
    }
    unread = sorted(rows.keys() - found.keys())
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        read = pool.map(lambda shard: _summarise(storage, shard, standing), unread)
        found.update(zip(unread, read, strict=True))
    completed = [{**row, "columns": standing.columns.get(s)} for s, row in found.items()]
    return to_index(completed, manifest)


def to_index(rows: Iterable[Row], manifest: Manifest) -> pa.Table:
    """Return rows as a snapshot of the generation that a manifest ends with."""
    ordered = sorted(rows, key=shard_of)
    return _marked(
        pa.Table.from_pylist([dict(row) for row in ordered], schema=INDEX_SCHEMA), manifest
    )


def _marked(table: pa.Table, manifest: Manifest) -> pa.Table:
    """Return a snapshot that says of which generation it is."""
    facts = {"generation": len(manifest.generations), "fingerprint": manifest.fingerprint}
    return table.replace_schema_metadata({INDEX_FACTS: json.dumps(facts)})


def shard_of(row: Row) -> ShardId:
    """Return the shard of a row of the snapshot."""
    return ShardId(row["bucket"], row["shard"])


def current_index(storage: Storage, manifest: Manifest) -> pa.Table:
    """Return what is committed now, reading only the tables that the published snapshot lacks."""
    return build_index(storage, manifest, known_index(storage, manifest))


def known_index(storage: Storage, manifest: Manifest) -> pa.Table:
    """Return the published snapshot; no row where `usable_index` has none: more may be committed."""
    table = usable_index(storage, manifest)
    return INDEX_SCHEMA.empty_table() if table is None else table


def without_shards(table: pa.Table, shards: Iterable[ShardId]) -> pa.Table:
    """Return a snapshot's rows without those of some shards."""
    numbers: dict[str, list[int]] = {}
    for shard in shards:
        numbers.setdefault(shard.bucket, []).append(shard.number)
    gone = np.zeros(table.num_rows, bool)
    for name, some in numbers.items():
        gone |= pc.equal(table["bucket"], name).to_numpy() & np.isin(
            table["shard"].to_numpy(), some
        )
    return table.filter(pa.array(~gone))


def usable_index(storage: Storage, manifest: Manifest) -> pa.Table | None:
    """Return the published snapshot; None if it says nothing of what is committed.

    So it is if it is not there, damaged, or of a generation that is newer than the manifest.
    """
    try:
        table = read_index(storage)
        check_index(table, manifest)
    except (CacheError, ValueError):
        return None
    return table


def publish(storage: Storage, table: pa.Table) -> None:
    """Write the snapshot; readers see the old one or the new one."""
    facts = json.loads(table.schema.metadata[INDEX_FACTS.encode()])
    storage.write(INDEX, to_parquet(table, {INDEX_FACTS: facts}))


def publish_current(storage: Storage, manifest: Manifest, known: pa.Table) -> None:
    """Publish what is committed, and look once more: who publishes last must have seen what all did.

    known: rows that are true, see `build_index`. Raises CacheError where other runs go on without end.
    """
    rounds = Rounds("publishing the snapshot")
    now = build_index(storage, manifest, known)
    while True:
        rounds.next()
        table = now
        publish(storage, table)
        manifest = refresh(storage, manifest)
        now = current_index(storage, manifest)
        if now.equals(table, check_metadata=True):
            return


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
        facts = parse_json((table.schema.metadata or {})[INDEX_FACTS.encode()])
        sound = type(facts["generation"]) is int and isinstance(facts["fingerprint"], str)
    except OTHER_SHAPE:
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


def committed_numbers(storage: Storage, manifest: Manifest) -> dict[str, Numbers]:
    """Return which of each bucket's planned shards have a sample table, in order."""
    found = {}
    for bucket in manifest.buckets:
        names = storage.names(samples_folder(bucket.name), sample_prefixes(bucket.num_shards))
        numbers = [n for name in names if (n := shard_of_sample_file(name)) is not None]
        found[bucket.name] = np.unique(
            np.array([n for n in numbers if n < bucket.num_shards], np.int64)
        )
    return found


def committed_places(storage: Storage, manifest: Manifest) -> list[ShardId]:
    """Return the planned shards that have a sample table, by bucket and in order."""
    return _shards(committed_numbers(storage, manifest))


def _summarise(storage: Storage, shard: ShardId, standing: Standing) -> dict[str, Any]:
    path = sample_path(*shard)
    try:
        table, num_bytes = read_sized_table(storage, path, ["row", "status", "length"])
    except FileNotFoundError:
        raise damaged(storage, path, "is gone since it was listed", may_be_cleaned=True) from None
    return summarise(table, shard, num_bytes, standing)
