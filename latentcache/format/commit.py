"""Commit: the shard object first, its sample table last. The table's existence is the commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from latentcache.core.dtypes import Array
from latentcache.core.records import ChunkRef, Clip, ClipResult, Shard, ShardReport
from latentcache.core.spec import ITEM_BYTES
from latentcache.format.paths import sample_path
from latentcache.format.schemas import SAMPLE_SCHEMA, shard_facts
from latentcache.format.shards.protocol import ArrayLayout, Format
from latentcache.format.snapshot import summarise
from latentcache.format.tables import to_parquet
from latentcache.storage.folder import Storage

#: Failures that a report names one by one; the sample table has them all.
NAMED_FAILURES = 20


def commit_shard(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    rows: Sequence[Array | None],
    results: Sequence[ClipResult],
    kept: Sequence[pa.Field],
    fingerprint: str,
) -> ShardReport:
    """Compress and write one shard, then its sample table. Idempotent: the same rows, the same objects.

    rows: one array of the layout's shape a clip, None where it failed. fingerprint: of the recipe.
    """
    started = time.perf_counter()
    encoded = shard_format.encode_shard(layout, shard.index, rows)
    storage.write(encoded.path, encoded.data)
    facts = shard_facts(fingerprint, encoded.data)
    size = _write_table(storage, shard, results, encoded.chunks, kept, facts)
    return _report(layout, shard, results, encoded.chunks, size, time.perf_counter() - started)


def commit_failed_shard(
    storage: Storage,
    layout: ArrayLayout,
    shard: Shard,
    message: str,
    kept: Sequence[pa.Field],
    fingerprint: str,
) -> ShardReport:
    """Record a shard that failed as a whole: every clip is failed, and there is no shard object."""
    results = [ClipResult(reason="shard_failed", message=message)] * len(shard.clips)
    chunks = [None] * len(shard.clips)
    facts = shard_facts(fingerprint, None)
    size = _write_table(storage, shard, results, chunks, kept, facts)
    return _report(layout, shard, results, chunks, size, 0.0)


def report_committed(shard: Shard, table: pa.Table, table_bytes: int) -> ShardReport:
    """Report a shard that another run has committed; `table` is its sample table."""
    facts = summarise(table, shard.bucket.name, shard.index, table_bytes)
    return ShardReport(**facts, num_frames=0, raw_bytes=0, committed_before=True)


def _write_table(
    storage: Storage,
    shard: Shard,
    results: Sequence[ClipResult],
    chunks: Sequence[ChunkRef | None],
    kept: Sequence[pa.Field],
    facts: Mapping[str, Any],
) -> int:
    """Write the sample table; returns its bytes."""
    data = to_parquet(sample_table(shard, results, chunks, kept), facts)
    storage.write(sample_path(shard.bucket.name, shard.index), data)
    return len(data)


def sample_table(
    shard: Shard,
    results: Sequence[ClipResult],
    chunks: Sequence[ChunkRef | None],
    kept: Sequence[pa.Field],
) -> pa.Table:
    """Return the rows of a shard: SAMPLE_SCHEMA and the kept columns."""
    rows = [
        _row(shard, row, clip, result, chunk)
        for row, (clip, result, chunk) in enumerate(zip(shard.clips, results, chunks, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([*SAMPLE_SCHEMA, *kept]))


def _row(
    shard: Shard, row: int, clip: Clip, result: ClipResult, chunk: ChunkRef | None
) -> dict[str, Any]:
    return {
        "key": clip.key,
        "source": clip.source,
        "bucket": shard.bucket.name,
        "shard": shard.index,
        "row": row,
        "status": "ok" if result.ok else "failed",
        "reason": result.reason,
        "message": result.message,
        "caption": clip.caption,
        "start": clip.start,
        "frames": clip.frames,
        "fps": clip.fps,
        "start_s": result.start_s,
        "end_s": result.end_s,
        "height": clip.height,
        "width": clip.width,
        "source_height": result.source_height,
        "source_width": result.source_width,
        "decoder": result.decoder,
        "tiling_error": result.tiling_error,
        "psnr": result.psnr,
        "offset": chunk.offset if chunk else None,
        "length": chunk.length if chunk else None,
        "crc32c": chunk.crc32c if chunk else None,
        "decode_s": result.decode_s,
        "encode_s": result.encode_s,
        **clip.keep,
    }


def _report(
    layout: ArrayLayout,
    shard: Shard,
    results: Sequence[ClipResult],
    chunks: Sequence[ChunkRef | None],
    table_bytes: int,
    write_s: float,
) -> ShardReport:
    num_ok = sum(result.ok for result in results)
    elements = 1
    for size in layout.shape:
        elements *= size
    failed = [
        (clip.key, result.reason, result.message or "")
        for clip, result in zip(shard.clips, results, strict=True)
        if result.reason is not None
    ]
    return ShardReport(
        bucket=shard.bucket.name,
        shard=shard.index,
        num_clips=len(results),
        num_ok=num_ok,
        num_frames=num_ok * shard.bucket.frames,
        stored_bytes=sum(chunk.length for chunk in chunks if chunk),
        table_bytes=table_bytes,
        raw_bytes=num_ok * elements * ITEM_BYTES[layout.dtype],
        reasons=Counter(reason for _, reason, _ in failed),
        failures=failed[:NAMED_FAILURES],
        tiling_errors=[r.tiling_error for r in results if r.tiling_error is not None],
        psnrs_db=[r.psnr for r in results if r.psnr is not None],
        decode_s=sum(result.decode_s for result in results),
        encode_s=sum(result.encode_s for result in results),
        write_s=write_s,
    )
