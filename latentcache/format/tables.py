"""Arrow schemas and paths of a cache's tables: plan, samples, snapshot. Both halves meet here."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentcache.format import checksum
from latentcache.format.parquet_bounds import footer_bytes, measure, read_row_groups

CACHE_JSON = "cache.json"
INDEX = "index.parquet"
#: Sources that could not be planned are rows of tables in this folder, beside the buckets' folders.
REJECTED = "rejected"

#: A table may take this much memory, and MAX_GROWTH times the bytes of its file more. (Of plans see
#: `objects`: hundreds of clips of one source repeat its caption, which takes no room in the file.)
BASE_BYTES = 1 << 28
MAX_GROWTH = 64
#: Rows decoded at a time, fewer where a repeated value is large.
BATCH_ROWS = 1 << 20
#: Of one value in a list, at least.
VALUE_BYTES = 8

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
#: the last one's; reason and message are set where the source cannot be used.
PROBE_SCHEMA = pa.schema(
    [
        pa.field("duration_s", pa.float64()),
        pa.field("identity", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
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
#: times of the clip's first frame and of the end of its last. tiling_error is set for a few clips of caches
#: that were tiled: see encoders.tiled. psnr is set for the clips that were decoded and compared: see gate.
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
        pa.field("decoder", pa.string()),
        pa.field("tiling_error", pa.float64()),
        pa.field("psnr", pa.float64()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc32c", pa.uint32()),
        pa.field("decode_s", pa.float64()),
        pa.field("encode_s", pa.float64()),
    ]
)
#: Metadata of a file that is none of its table: Arrow's schema, and the seal.
_NOT_OURS = (b"ARROW:schema", checksum.KEY.encode())
#: Columns that tables of older versions lack.
_ADDED = {"tiling_error", "psnr"}
#: What every ok row has.
_PLACED = ("key", "row", "offset", "length", "crc32c")
#: Facts of the run, not of the data: they may differ between two runs of the same plan.
RUN_COLUMNS = ("decoder", "decode_s", "encode_s", "table_bytes")

#: Key of the file's metadata where a sample table says of which cache and which shard object it is.
SHARD_FACTS = "latentcache.shard"

#: Key of the file's metadata where a plan says of which cache it is.
PLAN_FACTS = "latentcache.plan"

#: The snapshot: one row a committed shard. table_bytes: of its sample table's file, by which a row is known
#: that another run has replaced meanwhile.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("num_clips", pa.int32(), nullable=False),
        pa.field("num_ok", pa.int32(), nullable=False),
        pa.field("stored_bytes", pa.int64(), nullable=False),
        pa.field("table_bytes", pa.int64(), nullable=False),
    ]
)


def plan_path(bucket: str) -> str:
    """Path of a bucket's plan."""
    return f"plan/{bucket}.parquet"


def samples_folder(bucket: str) -> str:
    """Folder of a bucket's sample tables."""
    return f"samples/{bucket}"


def sample_path(bucket: str, shard: int) -> str:
    """Path of the sample table whose existence commits a shard."""
    return f"{samples_folder(bucket)}/{shard:06d}.parquet"


def shard_of_sample_file(name: str) -> int | None:
    """Shard index of a sample table's file name; None for any other file."""
    stem, dot, suffix = name.partition(".")
    return int(stem) if dot and suffix == "parquet" and stem.isdigit() else None


def shard_facts(fingerprint: str, data: bytes | None) -> dict[str, Any]:
    """Return the metadata of a sample table: the cache's recipe, size and CRC32C of the shard object.

    data: the object, None where all clips failed and there is none.
    """
    stored = (
        None if data is None else {"bytes": len(data), "crc32c": int(google_crc32c.value(data))}
    )
    return {SHARD_FACTS: {"fingerprint": fingerprint, "object": stored}}


def plan_facts(fingerprint: str) -> dict[str, Any]:
    """Return the metadata of a plan: the cache's recipe."""
    return {PLAN_FACTS: {"fingerprint": fingerprint}}


def to_parquet(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Serialise a table, zstd-compressed and sealed; the same table gives the same bytes."""
    texts = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    buffer = io.BytesIO()
    schema = table.schema.remove_metadata()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        writer.write_table(table.replace_schema_metadata())
        writer.add_key_value_metadata({**texts, checksum.KEY: checksum.EMPTY})
    return checksum.seal(buffer.getvalue())


def from_parquet(
    data: bytes, columns: list[str] | None = None, max_memory: int | None = None
) -> pa.Table:
    """Read what `to_parquet` wrote, or some of its columns, with its metadata.

    Raises ValueError where the bytes are not those that were written, or would take far more memory
    than they do themselves, or more than `max_memory` if that is larger.

    In this thread alone: pq.read_table leaves the bytes to a thread of Arrow's, which may let go of
    them while the interpreter shuts down, and then aborts the process.
    """
    checksum.check(data)
    try:
        limit = max(BASE_BYTES + MAX_GROWTH * len(data), max_memory or 0)
        return _decode(data, columns, limit)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def check_plan(table: pa.Table, fingerprint: str) -> None:
    """Raise ValueError where a plan is of another cache, or a column lacks, has another type or nulls."""
    for key, value in plan_facts(fingerprint).items():
        if (table.schema.metadata or {}).get(key.encode()) != json.dumps(value).encode():
            raise ValueError("it is of another recipe or corpus")
    _check_types(table, PLAN_SCHEMA)
    for field in PLAN_SCHEMA:
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
    wanted = {*SAMPLE_SCHEMA.names} - _ADDED if columns is None else {*columns}
    if missing := sorted(wanted.intersection(SAMPLE_SCHEMA.names) - {*table.column_names}):
        raise ValueError(f"it has no column {', '.join(missing)}")
    if "status" in table.column_names:
        ok = table.filter(pc.equal(table["status"], "ok"))
        empty = [name for name in ok.column_names if name in _PLACED and ok[name].null_count]
        if empty:
            raise ValueError(f"rows that are ok have no {', '.join(empty)}")


def object_facts(table: pa.Table, fingerprint: str) -> Mapping[str, Any] | None:
    """Return size and CRC32C of a sample table's shard object, None where there is none.

    Raises ValueError where the table does not say, or is of a cache with another fingerprint.
    """
    try:
        facts = json.loads((table.schema.metadata or {})[SHARD_FACTS.encode()])
        recipe, stored = facts["fingerprint"], facts["object"]
        complete = stored is None or {type(stored["bytes"]), type(stored["crc32c"])} == {int}
    except (KeyError, TypeError, ValueError, RecursionError):
        complete = False
    if not complete:
        raise ValueError("it does not say what its shard object is")
    if recipe != fingerprint:
        raise ValueError(f"it was written with another recipe ({str(recipe)[:12]})")
    return stored  # type: ignore[no-any-return]


def _decode(data: bytes, columns: list[str] | None, limit: int) -> pa.Table:
    """Decode batch by batch: how much a batch takes follows from the pages, not from the footer."""
    groups = read_row_groups(data[-footer_bytes(data, len(data)) :])
    wanted = [c for g in groups for c in g.columns if columns is None or c.path[0] in columns]
    pages = measure(data, wanted)
    _check_size(pages.num_bytes + VALUE_BYTES * pages.list_values, limit)
    batch_rows = max(1, min(BATCH_ROWS, BASE_BYTES // max(1, pages.dictionary_bytes)))
    batches: list[pa.RecordBatch] = []
    num_bytes = 0
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            batch.validate(full=True)  # such as text that is no UTF-8
            batches.append(batch)
            num_bytes += batch.nbytes
            _check_size(num_bytes, limit)
        known = file.schema_arrow.names
        names = known if columns is None else [name for name in columns if name in known]
        kept = [
            file.schema_arrow.field(name) for name in names
        ]  # in the order of the batches' columns
        texts = {k: v for k, v in file.metadata.metadata.items() if k not in _NOT_OURS}
    table = pa.Table.from_batches(batches, pa.schema(kept)).replace_schema_metadata(texts or None)
    if table.num_rows != sum(group.num_rows for group in groups):
        raise ValueError(f"it has {table.num_rows} rows, and its footer says another number")
    return table


def _check_size(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise ValueError(f"it would take more than {limit} bytes of memory, which no table does")
