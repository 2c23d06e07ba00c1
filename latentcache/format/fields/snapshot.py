"""A field's snapshot: which of its shards are committed, of each version, and which rows of them failed.

As a cache's: anyone can make it again from what is there, and it is the only object of a field that is
replaced, beside its arrays' `zarr.json`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import LASTING, ShardId
from latentcache.errors import CorruptionError
from latentcache.format.changes import Standing
from latentcache.format.damage import damaged
from latentcache.format.fields.commit import read_field_table, report_of
from latentcache.format.fields.manifest import FieldManifest, Version, refresh_field
from latentcache.format.fields.paths import (
    field_index_path,
    field_sample_path,
    field_samples_folder,
)
from latentcache.format.manifest import Manifest, refresh
from latentcache.format.paths import sample_prefixes, shard_of_sample_file
from latentcache.format.rounds import OTHERS_GO_ON, ROUNDS
from latentcache.format.schemas import check_columns, check_facts, plan_facts
from latentcache.format.tables import read_table, to_parquet
from latentcache.storage.folder import Storage

NUM_THREADS = 16

#: One row per committed shard of a version. failed: its rows without a sample; lasting: those of them that
#: fail again if they are tried again; num_lost: clips some of whose tokens were cut off. failed_texts: of
#: clips with others that are ok, by reason; a row is named once per text.
FIELD_INDEX_SCHEMA = pa.schema(
    [
        pa.field("version", pa.int32(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("num_clips", pa.int32(), nullable=False),
        pa.field("num_ok", pa.int32(), nullable=False),
        pa.field("stored_bytes", pa.int64(), nullable=False),
        pa.field("table_bytes", pa.int64(), nullable=False),
        pa.field("num_lost", pa.int32(), nullable=False),
        pa.field("failed", pa.list_(pa.int32()), nullable=False),
        pa.field("lasting", pa.list_(pa.int32()), nullable=False),
        pa.field(
            "failed_texts",
            pa.list_(pa.struct([("reason", pa.string()), ("rows", pa.list_(pa.int32()))])),
            nullable=False,
        ),
    ]
)

Row = Mapping[str, Any]

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A shard of a version of a field."""

    version: int
    shard: ShardId


def part_of(row: Row) -> Part:
    """Return the part that a row of the snapshot is of."""
    return Part(row["version"], ShardId(row["bucket"], row["shard"]))


def parts_of(index: pa.Table) -> list[Part]:
    """Return the parts of a snapshot, in the order of its rows."""
    versions, shards = (index[name].to_numpy().tolist() for name in ("version", "shard"))
    buckets = index["bucket"].to_numpy().tolist()
    return [Part(v, ShardId(*place)) for v, *place in zip(versions, buckets, shards, strict=True)]


def committed_parts(storage: Storage, field: FieldManifest, manifest: Manifest) -> list[Part]:
    """Return what is committed of a field, in order."""
    places = [(v, bucket) for v in field.all_versions for bucket in manifest.buckets]

    def look(place: tuple[Any, Any]) -> list[Part]:
        version, bucket = place
        if version.rows is not None and all(s.bucket != bucket.name for s in version.rows):
            return []
        folder = field_samples_folder(field.name, version.number, bucket.name)
        names = storage.names(folder, sample_prefixes(bucket.num_shards))
        numbers = sorted(n for n in map(shard_of_sample_file, names) if n is not None)
        return [
            Part(version.number, ShardId(bucket.name, n)) for n in numbers if n < bucket.num_shards
        ]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return [part for parts in pool.map(look, places) for part in parts]


def missing_versions(
    storage: Storage, field: FieldManifest, manifest: Manifest, shards: Sequence[ShardId]
) -> dict[ShardId, list[Version]]:
    """Return the versions of each of some shards that are not committed, in order."""
    there, found = set(committed_parts(storage, field, manifest)), dict[ShardId, list[Version]]()
    for version in field.all_versions:
        rows = version.rows
        for shard in shards:
            if (rows is None or shard in rows) and (version.number, shard) not in there:
                found.setdefault(shard, []).append(version)
    return found


def without_planned(
    storage: Storage,
    field: FieldManifest,
    manifest: Manifest,
    rows: Mapping[ShardId, frozenset[int]],
) -> dict[ShardId, frozenset[int]]:
    """Return rows without those that are planned again already: a newer version lists them, uncommitted."""
    there = set(committed_parts(storage, field, manifest))
    found = {}
    for shard, wanted in rows.items():
        waiting: set[int] = set()
        for version in field.versions:
            listed = (version.rows or {}).get(shard, frozenset())
            is_there = Part(version.number, shard) in there
            waiting = waiting - listed if is_there else waiting | listed
        if left := wanted - waiting:
            found[shard] = left
    return found


def build_field_index(
    storage: Storage, field: FieldManifest, manifest: Manifest, known: Iterable[Row] = ()
) -> pa.Table:
    """Return the snapshot of what is committed of a field. known: rows that need not be read again."""
    rows = {part_of(row): row for row in known}
    parts = committed_parts(storage, field, manifest)

    unknown = [part for part in parts if part not in rows]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        read = pool.map(lambda part: _summarise(storage, field, part), unknown)
        rows.update(zip(unknown, read, strict=True))
    return pa.Table.from_pylist([rows[part] for part in parts], schema=FIELD_INDEX_SCHEMA)


def _summarise(storage: Storage, field: FieldManifest, part: Part) -> Row:
    try:
        table, num_bytes = read_field_table(storage, field, *part)
    except FileNotFoundError:
        path = field_sample_path(field.name, *part)
        raise damaged(storage, path, "is gone since it was listed") from None
    return summarise_field(table, field, part, num_bytes)


def summarise_field(
    table: pa.Table, field: FieldManifest, part: Part, table_bytes: int
) -> dict[str, Any]:
    """Return the row of a shard whose sample table this is."""
    report = report_of(table, field, part.shard, table_bytes)
    ok = table.filter(pc.equal(table["status"], "ok"))
    failed = set(table["row"].to_pylist()) - set(ok["row"].to_pylist())
    why = zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True)
    passing = {row for row, reason in why if reason not in LASTING}
    lost = ok.filter(pc.greater(pc.fill_null(ok["lost_tokens"], 0), 0))
    return {
        "version": part.version,
        "bucket": part.shard.bucket,
        "shard": part.shard.number,
        "num_clips": report.num_ok + len(failed),
        "num_ok": report.num_ok,
        "stored_bytes": report.stored_bytes,
        "table_bytes": table_bytes,
        "num_lost": len(set(lost["row"].to_pylist())),
        "failed": sorted(failed),
        "lasting": sorted(failed - passing),
        "failed_texts": _failed_texts(table, failed),
    }


def _failed_texts(table: pa.Table, failed: Collection[int]) -> list[dict[str, Any]]:
    """Return the texts that failed of rows with others that are ok, by reason. failed: the other rows."""
    found: dict[str, list[int]] = {}
    columns = (table[name].to_pylist() for name in ("row", "status", "reason"))
    for row, status, reason in zip(*columns, strict=True):
        if status == "failed" and row not in failed:
            found.setdefault(reason, []).append(row)
    return [{"reason": reason, "rows": sorted(found[reason])} for reason in sorted(found)]


def read_field_index(storage: Storage, field: FieldManifest) -> pa.Table:
    """Return the published snapshot, without a row if there is none yet. Raises CorruptionError."""
    path = field_index_path(field.name)
    try:
        table = read_table(storage, path)
        check_facts(table, plan_facts(field.fingerprint))
        check_columns(table, FIELD_INDEX_SCHEMA)
    except FileNotFoundError:
        return FIELD_INDEX_SCHEMA.empty_table()
    except CorruptionError:
        raise
    except ValueError as error:
        raise damaged(storage, path, f"is no snapshot of this field: {error}") from None
    return table.select(FIELD_INDEX_SCHEMA.names).replace_schema_metadata()


def known_field_rows(storage: Storage, field: FieldManifest) -> list[dict[str, Any]]:
    """Return the rows of the published snapshot; none if it is damaged or not there."""
    try:
        return read_field_index(storage, field).to_pylist()  # type: ignore[no-any-return]
    except CorruptionError:
        return []


def publish_field(
    storage: Storage, field: FieldManifest, manifest: Manifest, derived: Collection[Part] = ()
) -> pa.Table:
    """Write the snapshot of all that is committed now, whoever did it and has planned it meanwhile.

    derived: parts whose sample tables were written again, of which nothing is taken over from the snapshot
    that there is. Returns the rows that are of the shards and versions that were given. A run that goes on
    beside this one publishes what it commits after the last round.
    """
    newest, now = field, manifest
    for number in range(ROUNDS):
        now = refresh(storage, now)
        newest = refresh_field(storage, newest, now)
        known = known_field_rows(storage, field)
        if number == 0:
            known = [row for row in known if part_of(row) not in derived]
        table = build_field_index(storage, newest, now, known)
        if known == table.to_pylist() and storage.exists(field_index_path(field.name)):
            return _within(table, field, manifest)
        data = to_parquet(table, plan_facts(field.fingerprint))
        storage.write(field_index_path(field.name), data)
    log.warning(OTHERS_GO_ON)
    return _within(table, field, manifest)


def _within(table: pa.Table, field: FieldManifest, manifest: Manifest) -> pa.Table:
    """Return the rows of a snapshot that are of a field's versions and a cache's planned shards."""
    num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
    places = zip(table["bucket"].to_pylist(), table["shard"].to_pylist(), strict=True)
    is_planned = pa.array([n < num_shards.get(bucket, 0) for bucket, n in places], pa.bool_())
    is_known = pc.less_equal(table["version"], len(field.all_versions))
    return table.filter(pc.and_(is_planned, is_known))


@dataclass(frozen=True, kw_only=True)
class FieldCounts:
    """How far a field is. num_shards: of the versions that it has, with rows that count; clips that count.

    num_lasting: failed ones that would fail again. num_lost: clips some of whose tokens were cut off; at
    most so many, where a shard has some rows that a newer version has too, or that no longer count.
    stored_bytes: of all versions. failed_texts: those of clips that are ok, by reason.
    """

    num_shards: int
    num_committed: int
    num_ok: int
    num_failed: int
    num_lasting: int
    num_lost: int
    stored_bytes: int
    failed_texts: Mapping[str, int]

    @property
    def num_failed_texts(self) -> int:
        """How many texts failed of clips with others that are ok."""
        return sum(self.failed_texts.values())


def count_field(
    field: FieldManifest, manifest: Manifest, index: pa.Table, standing: Standing
) -> FieldCounts:
    """Return how far a field is, by its snapshot; a view has nothing to store."""
    if field.kind == "view":
        names = {field.name for field in dataclasses.fields(FieldCounts)} - {"failed_texts"}
        return FieldCounts(**dict.fromkeys(names, 0), failed_texts={})
    ok = failed = lasting = lost = 0
    texts: dict[str, int] = {}
    for shard, versions in newest_versions(field, index).items():
        seen = set(standing.rows(shard))
        for row in versions:
            rows = set(rows_of(field, manifest, part_of(row))) - seen
            bad = len(rows.intersection(row["failed"]))
            good = len(rows) - bad
            ok, failed = ok + good, failed + bad
            lasting += len(rows.intersection(row["lasting"]))
            # The snapshot does not say which rows lost tokens; none that failed did.
            lost += min(row["num_lost"], good)
            for failing in row["failed_texts"]:
                if num := sum(n in rows for n in failing["rows"]):
                    texts[failing["reason"]] = texts.get(failing["reason"], 0) + num
            seen |= rows
    gone = standing.retired_shards(manifest)
    listed = {
        Part(version.number, shard)
        for version in field.versions
        for shard in version.rows or ()
        if shard not in gone
    }
    return FieldCounts(
        num_shards=manifest.num_shards - len(gone) + len(listed),
        num_committed=sum(part_of(row).shard not in gone for row in index.to_pylist()),
        num_ok=ok,
        num_failed=failed,
        num_lasting=lasting,
        num_lost=lost,
        stored_bytes=pc.sum(index["stored_bytes"]).as_py() or 0,
        failed_texts=texts,
    )


def rows_to_try_again(
    field: FieldManifest, manifest: Manifest, index: pa.Table, standing: Standing
) -> dict[ShardId, frozenset[int]]:
    """Return the rows that are ok, and some of whose texts failed in a way that need not come again."""
    gone, found = standing.retired_shards(manifest), dict[ShardId, frozenset[int]]()
    for shard, versions in newest_versions(field, index).items():
        seen, failed = set(standing.rows(shard)), set[int]()
        for row in versions:
            for texts in row["failed_texts"]:
                if texts["reason"] not in LASTING:
                    failed.update({*texts["rows"]} - seen)
            seen.update(rows_of(field, manifest, part_of(row)))
        if failed and shard not in gone:
            found[shard] = frozenset(failed)
    return found


def rows_of(field: FieldManifest, manifest: Manifest, part: Part) -> Iterable[int]:
    """Return the rows of a shard that a version holds, in order."""
    listed = field.all_versions[part.version - 1].rows
    return range(manifest.num_rows(part.shard)) if listed is None else sorted(listed[part.shard])


def newest_versions(field: FieldManifest, index: pa.Table) -> dict[ShardId, list[Row]]:
    """Return what is committed of each shard, the newest version first."""
    found: dict[ShardId, list[Row]] = {}
    for row in sorted(index.to_pylist(), key=lambda row: -row["version"]):
        if row["version"] <= len(field.versions) + 1:
            found.setdefault(ShardId(row["bucket"], row["shard"]), []).append(row)
    return found
