"""Arrow schemas and paths of a cache's tables: plan, samples, snapshot. Both halves meet here."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CACHE_JSON = "cache.json"
INDEX = "index.parquet"
#: Sources that could not be planned are rows of tables in this folder, beside the buckets' folders.
REJECTED = "rejected"

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
#: that were tiled: see encoders.tiled.
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
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc32c", pa.uint32()),
        pa.field("decode_s", pa.float64()),
        pa.field("encode_s", pa.float64()),
    ]
)
#: Facts of the run, not of the data: they may differ between two runs of the same plan.
RUN_COLUMNS = ("decoder", "decode_s", "encode_s")

#: The snapshot: one row a committed shard.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("num_clips", pa.int32(), nullable=False),
        pa.field("num_ok", pa.int32(), nullable=False),
        pa.field("stored_bytes", pa.int64(), nullable=False),
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


def to_parquet(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Serialise a table, zstd-compressed; the same table gives the same bytes."""
    if metadata is not None:
        table = table.replace_schema_metadata({k: json.dumps(v) for k, v in metadata.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read what `to_parquet` wrote, or some of its columns.

    In this thread alone: pq.read_table leaves the bytes to a thread of Arrow's, which may let go of
    them while the interpreter shuts down, and then aborts the process.
    """
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns=columns, use_threads=False)
