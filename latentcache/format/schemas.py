"""Arrow schemas of a cache's tables, and the checks that a table is of its schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.json_text import OTHER_SHAPE, parse_json

#: One row a source. name: unique, the path as the corpus gives it (or its `key` column). frames, fps,
#: height and width are null where they must be probed. Columns of `corpus.keep` follow.
SOURCE_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("frames", pa.int64()),
        pa.field("fps", pa.float64()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
    ]
)

#: What probing adds to a source. duration_s runs from the first frame's presentation time to the end of
#: the last one's; reason and message are set where the source cannot be used. times_s: presentation times
#: of the frames, if the corpus has columns per frame.
PROBE_SCHEMA = pa.schema(
    [
        pa.field("duration_s", pa.float64()),
        pa.field("identity", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("times_s", pa.list_(pa.float64())),
    ]
)

#: One row a clip, in row order: `shard` and `row` say where its latent goes.
PLAN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64()),
        pa.field("caption", pa.string()),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)

#: One row a clip, ok or failed; columns of `corpus.keep` follow. offset, length and crc32c locate the
#: clip's bytes in its shard object and are null where it failed. start_s and end_s are the presentation
#: times of the clip's first frame and of the end of its last. source_height, source_width: as decoded,
#: after rotation; source_fps to crop_left: see records.PictureFacts. tiling_error is set for a few clips of
#: caches that were tiled: see encoders.tiled. psnr is set for the clips that were decoded and compared: see
#: gate. drift is set for the clips of a round trip: see core.drift.
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("bucket", pa.string()),
        pa.field("shard", pa.int64()),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("frames", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("source_height", pa.int32()),
        pa.field("source_width", pa.int32()),
        pa.field("source_fps", pa.float64()),
        pa.field("display_height", pa.int32()),
        pa.field("display_width", pa.int32()),
        pa.field("interlaced", pa.bool_()),
        pa.field("transfer", pa.string()),
        pa.field("resized_height", pa.int32()),
        pa.field("resized_width", pa.int32()),
        pa.field("crop_top", pa.int32()),
        pa.field("crop_left", pa.int32()),
        pa.field("decoder", pa.string()),
        pa.field("tiling_error", pa.float64()),
        pa.field("psnr", pa.float64()),
        pa.field("drift", pa.float64()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc32c", pa.uint32()),
        pa.field("decode_s", pa.float64()),
        pa.field("encode_s", pa.float64()),
    ]
)

#: What conditions on clips may name besides columns, see `core.where`.
COMPUTED_COLUMNS = {"duration_s": "end_s - start_s"}

#: What every ok row has.
_PLACED = ("key", "row", "offset", "length", "crc32c")

#: Facts of the run, not of the data: they may differ between two runs of the same plan.
RUN_COLUMNS = ("decoder", "decode_s", "encode_s", "table_bytes")

#: Key of the file's metadata where a sample table says of which cache and which shard object it is.
SHARD_FACTS = "latentcache.shard"

#: Key of the file's metadata where a shard's tables say of which clips they are, see `planned_rows`.
CLIPS_FACTS = "latentcache.clips"

#: Key of the file's metadata where a plan says of which cache it is.
PLAN_FACTS = "latentcache.plan"

#: The snapshot: one row per committed shard. num_clips: its rows that count, ok and failed. table_bytes: of
#: its sample table. retired: its rows that no longer count. columns: the folder of the generation that
#: changed its captions or kept columns last, null if none did.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("num_clips", pa.int32(), nullable=False),
        pa.field("num_ok", pa.int32(), nullable=False),
        pa.field("stored_bytes", pa.int64(), nullable=False),
        pa.field("table_bytes", pa.int64(), nullable=False),
        pa.field("retired", pa.list_(pa.int32())),
        pa.field("columns", pa.string()),
    ]
)
#: Key of the snapshot's metadata: the number of the generation that it shows, and the cache's recipe.
INDEX_FACTS = "latentcache.snapshot"

#: What a generation says of sources. what: planned, partial (planned, and copied while some of its clips
#: were still to be encoded), rejected, moved (to another URL), touched (another stamp) or gone. stamp: what
#: is known of a file without reading it, see `corpus.stamps`.
PLANNED_SOURCE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("identity", pa.string()),
        pa.field("stamp", pa.string()),
        pa.field("what", pa.string(), nullable=False),
    ]
)
#: Rows that no longer count, and why.
RETIRED_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
    ]
)
#: Rows that are copied into other shards of their bucket, and where each goes.
COPIED_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("into_shard", pa.int64(), nullable=False),
        pa.field("into_row", pa.int32(), nullable=False),
    ]
)
#: Rows that are copied from other caches: what each is there. parent: its number in the generation.
IMPORTED_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("parent", pa.int32(), nullable=False),
        pa.field("from_shard", pa.int64(), nullable=False),
        pa.field("from_row", pa.int32(), nullable=False),
    ]
)
#: Shards of which a generation has changed captions or kept columns.
CHANGED_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
    ]
)


def shard_facts(fingerprint: str, data: bytes) -> dict[str, Any]:
    """Return the metadata of a sample table: the cache's recipe, size and CRC32C of the shard object."""
    stored = {"bytes": len(data), "crc32c": int(google_crc32c.value(data))}
    return {SHARD_FACTS: {"fingerprint": fingerprint, "object": stored}}


def plan_facts(fingerprint: str) -> dict[str, Any]:
    """Return the metadata of a plan: the cache's recipe."""
    return {PLAN_FACTS: {"fingerprint": fingerprint}}


def check_plan(table: pa.Table, fingerprint: str) -> None:
    """Raise ValueError where a plan is of another cache, or a column lacks, has another type or nulls."""
    check_facts(table, plan_facts(fingerprint))
    check_columns(table, PLAN_SCHEMA)


def check_facts(table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless a table's metadata says these facts."""
    for key, value in facts.items():
        if (table.schema.metadata or {}).get(key.encode()) != json.dumps(value).encode():
            raise ValueError("it is of another recipe")


def check_columns(table: pa.Table, schema: pa.Schema) -> None:
    """Raise ValueError if a table lacks a column of a schema, or it has another type, or nulls."""
    _check_types(table, schema)
    for field in schema:
        if field.name not in table.column_names:
            raise ValueError(f"it has no column {field.name}")
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"its column {field.name} has nulls")


def _check_types(table: pa.Table, schema: pa.Schema) -> None:
    for field in schema:
        if field.name in table.column_names and table.schema.field(field.name).type != field.type:
            raise ValueError(f"{field.name} is {table.schema.field(field.name).type}")


def check_samples(table: pa.Table, columns: Collection[str] | None = None) -> None:
    """Raise ValueError where this is no sample table, or ok rows of it have no place.

    columns: those that were read, where it was not all.
    """
    if len({*table.column_names}) < len(table.column_names):
        raise ValueError("it has a column twice")
    _check_types(table, SAMPLE_SCHEMA)
    wanted = {*SAMPLE_SCHEMA.names} if columns is None else {*columns}
    if missing := sorted(wanted.intersection(SAMPLE_SCHEMA.names) - {*table.column_names}):
        raise ValueError(f"it has no column {', '.join(missing)}")
    if "status" in table.column_names:
        ok = table.filter(pc.equal(table["status"], "ok"))
        empty = [name for name in ok.column_names if name in _PLACED and ok[name].null_count]
        if empty:
            raise ValueError(f"rows that are ok have no {', '.join(empty)}")


def object_facts(table: pa.Table, fingerprint: str) -> Mapping[str, Any]:
    """Return size and CRC32C of a sample table's shard object.

    Raises ValueError if the table does not say, or is of a cache with another fingerprint.
    """
    try:
        facts = parse_json((table.schema.metadata or {})[SHARD_FACTS.encode()])
        recipe, stored = facts["fingerprint"], facts["object"]
        complete = {type(stored["bytes"]), type(stored["crc32c"])} == {int}
    except OTHER_SHAPE:
        complete = False
    if not complete:
        raise ValueError("it does not say what its shard object is")
    if recipe != fingerprint:
        raise ValueError(f"it was written with another recipe ({str(recipe)[:12]})")
    return stored  # type: ignore[no-any-return]
