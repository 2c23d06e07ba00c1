"""Commit of a field's shard, as that of latents: objects created on condition, the field's own one last.

An array beside the field's own has its object and its sample table in it, too. Whoever finds one there
takes its bytes: they encode the same inputs, which a version pins.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.dtypes import Array
from latentcache.core.fields import FieldArray
from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.records import RETIRED, ChunkRef, ShardId, ShardReport
from latentcache.errors import CorruptionError
from latentcache.format.commit import NAMED_FAILURES, read_object
from latentcache.format.damage import damaged
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.paths import field_sample_path
from latentcache.format.manifest import Manifest
from latentcache.format.schemas import (
    check_columns,
    check_facts,
    object_facts,
    plan_facts,
    shard_facts,
)
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import (
    ArrayLayout,
    EncodedShard,
    Format,
    StoredChunk,
    embedded_table,
)
from latentcache.format.tables import from_parquet, read_sized_table, to_parquet
from latentcache.storage.folder import Storage

#: One row per clip and choice, such as a caption. input_sha: of what was encoded, the beginning of its
#: SHA-256. tokens: the text's own, that the model sees; lost_tokens: those that its length cut off. offset,
#: length and crc32c locate the sample's bytes in the shard object; equal ones may share them. Columns
#: `NAME.offset` and so on of further arrays follow, with `NAME.tokens` where they are ragged.
FIELD_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("choice", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("input_sha", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("lost_tokens", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc32c", pa.uint32()),
    ]
)
#: Key of a sample table's metadata: the objects of the field's further arrays, by their names.
OTHER_OBJECTS = "latentcache.objects"
PLACE = {"offset": pa.int64(), "length": pa.int64(), "crc32c": pa.uint32()}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What became of one choice of a clip. arrays: in the order of the field's; None if it failed.

    Equal samples may hold the same arrays, which are then stored once. Samples that are copied have stored
    chunks instead of arrays; lengths then says how many of its first axis each array has that are not
    padding, where it may have fewer than its shape.
    """

    key: str
    row: int
    choice: int
    input_sha: str | None = None
    arrays: Sequence[Array] | Sequence[StoredChunk] | None = None
    lengths: Sequence[int | None] = ()
    tokens: int | None = None
    lost_tokens: int = 0
    reason: str | None = None
    message: str | None = None

    def failed(self, reason: str, message: str | None) -> Sample:
        """Return it as one that failed."""
        return dataclasses.replace(
            self,
            arrays=None,
            lengths=(),
            tokens=None,
            lost_tokens=0,
            reason=reason,
            message=message,
        )

    def length(self, n: int) -> int | None:
        """Return how many of its first axis array n has that are not padding."""
        if self.lengths:
            return self.lengths[n]
        return None if self.arrays is None else len(cast(Array, self.arrays[n]))


def table_schema(field: FieldManifest) -> pa.Schema:
    """Return the schema of a field's sample tables."""
    extra = []
    for array in field.arrays[1:]:
        extra += [pa.field(f"{array.name}.{name}", kind) for name, kind in PLACE.items()]
        extra += [pa.field(f"{array.name}.tokens", pa.int32())] if array.ragged else []
    return pa.schema([*FIELD_SCHEMA, *extra])


def chunk_refs(
    table: pa.Table, array: FieldArray, choices: int, positions: Sequence[int]
) -> list[ChunkRef]:
    """Return where an array's samples are, for rows of a sample table that are ok."""
    start = f"{array.name}." if array.name else ""
    taken = table.take(pa.array(positions, pa.int64()))
    names = ("row", "choice", *(f"{start}{name}" for name in PLACE))
    columns = (taken[name].to_pylist() for name in names)
    return [
        ChunkRef(row=row * choices + choice, offset=offset, length=length, crc32c=crc)
        for row, choice, offset, length, crc in zip(*columns, strict=True)
    ]


def commit_field_shard(
    storage: Storage,
    manifest: Manifest,
    field: FieldManifest,
    version: int,
    shard: ShardId,
    samples: Sequence[Sample],
    *,
    packed: bool = False,
) -> ShardReport:
    """Compress a field's shard and create its objects and sample table, or adopt what is there.

    samples: one per row and choice, in order. packed: their arrays are stored chunks, which are put
    together as they are; ValueError if the format does not take them.
    """
    started = time.perf_counter()
    shard_format = get_format(manifest.format)
    layouts = field.layouts(manifest, version, shard.bucket)
    places: list[list[ChunkRef | None]] = []
    others: dict[str, Any] = {}
    for n, layout in reversed(list(enumerate(layouts))):
        encoded = _encode(shard_format, layout, shard.number, samples, n, packed=packed)
        chunks = [encoded.chunks[s.row * field.choices + s.choice] for s in samples]
        places.insert(0, chunks)
        table = _table(field, shard, samples, [*[[None] * len(samples)] * n, *places], since=n)
        facts = {**plan_facts(field.fingerprint), OTHER_OBJECTS: others}
        data = encoded.with_table(to_parquet(table, facts))
        if storage.create(encoded.path, data):
            others[field.arrays[n].name] = _object_facts(data)
            continue
        if n == 0:
            adopted = adopt_field_shard(storage, manifest, field, version, shard)
            if adopted is None:
                raise damaged(storage, encoded.path, "was there a moment ago, and is gone")
            return adopted
        data = _read_again(storage, shard_format, layout, shard)
        there = _embedded(storage, shard_format, field, layout, shard, data)
        places[0], samples = _take_over(field, there, samples, n)
        others[field.arrays[n].name] = _object_facts(data)
    size = _write_derived(storage, shard_format, field, layouts[0], version, shard, data)
    report = report_of(table, field, shard, size)
    return dataclasses.replace(report, write_s=time.perf_counter() - started)


def _encode(
    shard_format: Format,
    layout: ArrayLayout,
    number: int,
    samples: Sequence[Sample],
    n: int,
    *,
    packed: bool,
) -> EncodedShard:
    """Return the object of array n but for its sample table."""
    entries = _entries(layout, samples, n)
    if packed:
        return shard_format.pack(layout, number, cast("list[StoredChunk | None]", entries))
    return shard_format.encode_shard(layout, number, cast("list[Array | None]", entries))


def _entries(
    layout: ArrayLayout, samples: Sequence[Sample], n: int
) -> list[Array | StoredChunk | None]:
    """Return an array's samples by their number in the shard; None where there is none."""
    last = max((s.row * layout.choices + s.choice for s in samples), default=0)
    entries: list[Array | StoredChunk | None] = [None] * (last + 1)
    for sample in samples:
        if sample.arrays is not None:
            entries[sample.row * layout.choices + sample.choice] = sample.arrays[n]
    return entries


def _object_facts(data: bytes) -> dict[str, int]:
    return {"bytes": len(data), "crc32c": int(google_crc32c.value(data))}


def _read_again(
    storage: Storage, shard_format: Format, layout: ArrayLayout, shard: ShardId
) -> bytes:
    data = read_object(storage, shard_format, layout, shard.number)
    if data is None:
        path = shard_format.path(layout, shard.number)
        raise damaged(storage, path, "was there a moment ago, and is gone")
    return data


def _take_over(
    field: FieldManifest, table: pa.Table, samples: Sequence[Sample], n: int
) -> tuple[list[ChunkRef | None], list[Sample]]:
    """Return the places of an array's samples in the object that another attempt has left.

    table: the one in that object. A sample that failed there fails here, too: a retry plans it again.
    """
    name = field.arrays[n].name
    there = {(r["row"], r["choice"]): r for r in table.to_pylist()}
    places: list[ChunkRef | None] = []
    found: list[Sample] = []
    for sample in samples:
        row = there.get((sample.row, sample.choice))
        known = row is not None and row[f"{name}.offset"] is not None
        same = known and row is not None and row["input_sha"] == sample.input_sha
        if sample.arrays is None or row is None or not same:
            places.append(None)
            lost = f"an earlier attempt that was cut off has no {name} of it"
            found.append(sample if sample.arrays is None else sample.failed("shard_failed", lost))
            continue
        values = {key: row[f"{name}.{key}"] for key in PLACE}
        places.append(ChunkRef(row=sample.row * field.choices + sample.choice, **values))
        found.append(sample)
    return places, found


def _table(
    field: FieldManifest,
    shard: ShardId,
    samples: Sequence[Sample],
    places: Sequence[Sequence[ChunkRef | None]],
    since: int,
) -> pa.Table:
    """Return the sample table. places: of each array's samples. since: the first array that has some."""
    rows = []
    for i, sample in enumerate(samples):
        row: dict[str, Any] = {
            "key": sample.key,
            "bucket": shard.bucket,
            "shard": shard.number,
            "row": sample.row,
            "choice": sample.choice,
            "status": "failed" if sample.reason else "ok",
            "reason": sample.reason,
            "message": sample.message,
            "input_sha": sample.input_sha,
            "tokens": sample.tokens,
            "lost_tokens": sample.lost_tokens,
        }
        for n, array in enumerate(field.arrays):
            start = f"{array.name}." if array.name else ""
            chunk = places[n][i] if n >= since and sample.arrays is not None else None
            row |= {f"{start}{name}": getattr(chunk, name, None) for name in PLACE}
            if n and array.ragged and sample.arrays is not None:
                row[f"{start}tokens"] = sample.length(n)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=table_schema(field))


def adopt_field_shard(
    storage: Storage, manifest: Manifest, field: FieldManifest, version: int, shard: ShardId
) -> ShardReport | None:
    """Report a shard that is committed, writing its sample table if only its object is there."""
    path = field_sample_path(field.name, version, shard)
    shard_format = get_format(manifest.format)
    layout = field.layouts(manifest, version, shard.bucket)[0]
    try:
        table, num_bytes = read_field_table(storage, field, version, shard)
    except FileNotFoundError:
        data = read_object(storage, shard_format, layout, shard.number)
        if data is None:
            return None
        table = _embedded(storage, shard_format, field, layout, shard, data)
        num_bytes = _write_derived(storage, shard_format, field, layout, version, shard, data)
    except ValueError as error:
        raise damaged(storage, path, f"is not of this field: {error}") from error
    return dataclasses.replace(report_of(table, field, shard, num_bytes), committed_before=True)


def read_field_table(
    storage: Storage, field: FieldManifest, version: int, shard: ShardId
) -> tuple[pa.Table, int]:
    """Read a shard's sample table; returns it and its bytes. Raises FileNotFoundError, CorruptionError."""
    path = field_sample_path(field.name, version, shard)
    table, num_bytes = read_sized_table(storage, path)
    try:
        object_facts(table, field.fingerprint)
        check_field_table(table, field, shard)
    except CorruptionError:
        raise
    except ValueError as error:
        raise damaged(storage, path, f"is no sample table of this field: {error}") from None
    return table, num_bytes


def check_field_table(table: pa.Table, field: FieldManifest, shard: ShardId) -> None:
    """Raise ValueError where this is no sample table of a field's shard."""
    check_columns(table, table_schema(field))
    if table.num_rows and (
        pc.unique(table["bucket"]).to_pylist() != [shard.bucket]
        or pc.unique(table["shard"]).to_pylist() != [shard.number]
    ):
        raise ValueError("it is of another shard")
    ok = table.filter(pc.equal(table["status"], "ok"))
    if any(ok[name].null_count for name in ("offset", "length", "crc32c")):
        raise ValueError("rows that are ok have no place")
    rows, choices = table["row"].to_numpy(), table["choice"].to_numpy()
    if len(rows) and (rows.min() < 0 or choices.min() < 0 or choices.max() >= field.choices):
        raise ValueError("it has rows or choices that cannot be")


def _embedded(
    storage: Storage,
    shard_format: Format,
    field: FieldManifest,
    layout: ArrayLayout,
    shard: ShardId,
    data: bytes,
) -> pa.Table:
    """Return the sample table in an object. Raises CorruptionError."""
    try:
        table = from_parquet(embedded_table(data, shard_format.tail_bytes(layout, data)))
        check_facts(table, plan_facts(field.fingerprint))
        check_columns(table, table_schema(field))
        other_objects(table)
    except (ValueError, CorruptionError) as error:
        path = shard_format.path(layout, shard.number)
        raise damaged(storage, path, f"is no shard of this field: {error}") from error
    return table


def derive_field_table(
    storage: Storage,
    shard_format: Format,
    field: FieldManifest,
    layout: ArrayLayout,
    shard: ShardId,
    data: bytes,
) -> bytes:
    """Return the sample table that belongs to the bytes of the field's own object, as a Parquet file."""
    table = _embedded(storage, shard_format, field, layout, shard, data)
    facts = {**shard_facts(field.fingerprint, data), OTHER_OBJECTS: other_objects(table)}
    return to_parquet(table, facts)


def other_objects(table: pa.Table) -> dict[str, Any]:
    """Return bytes and CRC32C of the objects of a shard's further arrays. Raises ValueError."""
    try:
        found = parse_json((table.schema.metadata or {})[OTHER_OBJECTS.encode()])
        sound = all(type(o["bytes"]) is type(o["crc32c"]) is int for o in found.values())
    except OTHER_SHAPE:
        sound = False
    if not sound:
        raise ValueError("it does not say what the objects of its other arrays are")
    return found  # type: ignore[no-any-return]


def _write_derived(
    storage: Storage,
    shard_format: Format,
    field: FieldManifest,
    layout: ArrayLayout,
    version: int,
    shard: ShardId,
    data: bytes,
) -> int:
    derived = derive_field_table(storage, shard_format, field, layout, shard, data)
    storage.create(field_sample_path(field.name, version, shard), derived)
    return len(derived)


def report_of(
    table: pa.Table, field: FieldManifest, shard: ShardId, table_bytes: int
) -> ShardReport:
    """Return what a shard's sample table says of its clips, but those that were replaced or removed.

    A clip is ok if one of its choices is.
    """
    ok = table.filter(pc.equal(table["status"], "ok"))
    failed = table.filter(pc.equal(table["status"], "failed"))
    good = set(ok["row"].to_pylist())
    bad = [row for row in failed.to_pylist() if row["row"] not in good]
    counted = [row for row in bad if row["reason"] != RETIRED.reason]
    first = {row["row"]: row for row in reversed(counted)}
    names = ["length", *(f"{array.name}.length" for array in field.arrays[1:])]
    stored = ok.group_by(["offset"]).aggregate([(name, "max") for name in names])
    return ShardReport(
        bucket=shard.bucket,
        shard=shard.number,
        num_clips=len(good) + len(first),
        num_ok=len(good),
        num_frames=0,
        stored_bytes=sum(pc.sum(stored[f"{name}_max"]).as_py() or 0 for name in names),
        table_bytes=table_bytes,
        raw_bytes=0,
        reasons=Counter(row["reason"] for row in first.values()),
        failures=[
            (row["key"], row["reason"], row["message"] or "")
            for _, row in sorted(first.items())[:NAMED_FAILURES]
        ],
    )
