"""Commit: a shard's object is created, once, on condition that it is not there. Nothing replaces it.

The object carries its own sample table. The table under `samples/` is derived from the object's bytes by
whoever comes first, the same bytes each time. Who finds an object there adopts it: an encoding of
one's own is thrown away, for two encodings of a clip may differ in their last bits.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from latentcache.core.dtypes import Array
from latentcache.core.records import ChunkRef, Clip, ClipResult, Shard, ShardReport
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CorruptionError, RunStoppedError
from latentcache.format.changes import Standing
from latentcache.format.damage import advice, damaged
from latentcache.format.paths import sample_path
from latentcache.format.planned_rows import (
    clips_facts,
    difference,
    facts_of_clips,
    planned_rows,
    with_kept,
)
from latentcache.format.schemas import (
    SAMPLE_SCHEMA,
    check_facts,
    check_samples,
    object_facts,
    plan_facts,
    shard_facts,
)
from latentcache.format.shards.protocol import (
    ArrayLayout,
    EncodedShard,
    Format,
    StoredChunk,
    embedded_table,
)
from latentcache.format.shards.ranges import largest_object
from latentcache.format.snapshot import summarise
from latentcache.format.tables import from_parquet, read_bounded, read_sized_table, to_parquet
from latentcache.storage.folder import Storage
from latentcache.storage.urls import join, redact

#: Failures that a report names one by one; the sample table has them all.
NAMED_FAILURES = 20


def commit_shard(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    rows: Sequence[Array | None],
    results: Sequence[ClipResult],
    fingerprint: str,
) -> ShardReport:
    """Compress one shard and create its object and sample table, or adopt what another run has created.

    rows: one array of the layout's shape per clip, None if it failed. fingerprint: of the recipe.
    """
    started = time.perf_counter()
    encoded = shard_format.encode_shard(layout, shard.index, rows)
    return _commit(storage, shard_format, layout, shard, encoded, results, fingerprint, started)


def commit_chunks(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    chunks: Sequence[StoredChunk | None],
    results: Sequence[ClipResult],
    fingerprint: str,
) -> ShardReport:
    """Create a shard's object and sample table as `commit_shard` does, of chunks that are compressed.

    Raises ValueError if they are not of the format.
    """
    started = time.perf_counter()
    packed = shard_format.pack(layout, shard.index, chunks)
    return _commit(storage, shard_format, layout, shard, packed, results, fingerprint, started)


def _commit(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    encoded: EncodedShard,
    results: Sequence[ClipResult],
    fingerprint: str,
    started: float,
) -> ShardReport:
    table = sample_table(shard, results, encoded.chunks)
    facts = {**plan_facts(fingerprint), **clips_facts(planned_rows(shard))}
    data = encoded.with_table(to_parquet(table, facts))
    if not storage.create(encoded.path, data):
        adopted = adopt_shard(storage, shard_format, layout, shard, fingerprint)
        if adopted is None:
            raise damaged(storage, encoded.path, "was there a moment ago, and is gone")
        return adopted
    derived = _derive(storage, shard_format, layout, shard, data, fingerprint)
    storage.create(sample_path(*shard.id), derived)
    num_bytes = len(derived)
    return _report(layout, shard, results, encoded.chunks, num_bytes, time.perf_counter() - started)


def commit_failed_shard(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    message: str,
    fingerprint: str,
) -> ShardReport:
    """Record a shard that failed as a whole: its object holds a sample table, and no clip."""
    results = [ClipResult(reason="shard_failed", message=message)] * len(shard.clips)
    rows = [None] * len(shard.clips)
    return commit_shard(storage, shard_format, layout, shard, rows, results, fingerprint)


def adopt_shard(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    fingerprint: str,
) -> ShardReport | None:
    """Report a shard that is committed, writing its sample table if only its object is there.

    None: it is not committed. Raises CorruptionError; RunStoppedError if it is of other clips, files or
    captions than are planned. Its table is not written then, for that would make it count.
    """
    path = sample_path(*shard.id)
    try:
        table, num_bytes = read_sized_table(storage, path)
        object_facts(table, fingerprint)
    except FileNotFoundError:
        return _adopt_object(storage, shard_format, layout, shard, fingerprint)
    except ValueError as error:
        raise damaged(storage, path, f"is not of this cache: {error}") from error
    _check_clips(storage, path, shard, table)
    return _adopted(shard, table, num_bytes)


def _adopt_object(
    storage: Storage, shard_format: Format, layout: ArrayLayout, shard: Shard, fingerprint: str
) -> ShardReport | None:
    """Report a shard without a sample table, which is written once it is known to be of the shard."""
    data = read_object(storage, shard_format, layout, shard.index)
    if data is None:
        return None
    derived = _derive(storage, shard_format, layout, shard, data, fingerprint)
    table = from_parquet(derived)
    _check_clips(storage, shard_format.path(layout, shard.index), shard, table)
    storage.create(sample_path(*shard.id), derived)
    return _adopted(shard, table, len(derived))


def _adopted(shard: Shard, table: pa.Table, table_bytes: int) -> ShardReport:
    facts = summarise(table, shard.id, table_bytes, _standing(shard))
    return ShardReport(**facts, num_frames=0, raw_bytes=0, committed_before=True)


def _check_clips(storage: Storage, path: str, shard: Shard, table: pa.Table) -> None:
    """Stop a run that meets another plan's shard under the same recipe, which says nothing of clips."""
    planned = planned_rows(shard)
    what = difference(table, planned)
    if what is not None:
        raise RunStoppedError(
            f"{redact(join(storage.url, path))} {what} than was planned (it has {_few(table)}, and planned "
            f"is {_few(planned)}). A cache that was here has been removed and made again while a run still "
            "worked on it, or was removed only in part. Stop that run if there is one. "
            f"{advice(redact(storage.url), path)}"
        )


def _few(rows: pa.Table) -> str:
    keys = rows["key"].to_pylist() if "key" in rows.column_names else []
    return f"{keys[0]!r} and {len(keys) - 1} more" if keys else "none"


def read_object(
    storage: Storage, shard_format: Format, layout: ArrayLayout, index: int
) -> bytes | None:
    """Read a whole shard object, None if there is none. Raises CorruptionError if it is far too large."""
    try:
        return read_bounded(storage, shard_format.path(layout, index), largest_object(layout))
    except FileNotFoundError:
        return None


def derive_table(shard_format: Format, layout: ArrayLayout, data: bytes, fingerprint: str) -> bytes:
    """Return the sample table that belongs to a shard object's bytes, as a Parquet file.

    Raises ValueError if the object has none, or one of another recipe.
    """
    table = from_parquet(embedded_table(data, shard_format.tail_bytes(layout, data)))
    check_facts(table, plan_facts(fingerprint))
    check_samples(table)
    return to_parquet(table, {**shard_facts(fingerprint, data), **facts_of_clips(table)})


def _standing(shard: Shard) -> Standing:
    return Standing(retired={shard.id: shard.retired})


def _derive(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: Shard,
    data: bytes,
    fingerprint: str,
) -> bytes:
    """Return the sample table that an object's bytes give. Raises CorruptionError."""
    try:
        return derive_table(shard_format, layout, data, fingerprint)
    except (ValueError, CorruptionError) as error:
        path = shard_format.path(layout, shard.index)
        raise damaged(storage, path, f"is not a shard of this cache: {error}") from error


def sample_table(
    shard: Shard,
    results: Sequence[ClipResult],
    chunks: Sequence[ChunkRef | None],
) -> pa.Table:
    """Return the rows of a shard: SAMPLE_SCHEMA and the kept columns."""
    rows = [
        _row(shard, row, clip, result, chunk)
        for row, (clip, result, chunk) in enumerate(zip(shard.clips, results, chunks, strict=True))
    ]
    return with_kept(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), shard)


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
        **(asdict(result.picture) if result.picture else {}),
        "decoder": result.decoder,
        "tiling_error": result.tiling_error,
        "psnr": result.psnr,
        "drift": result.drift,
        "offset": chunk.offset if chunk else None,
        "length": chunk.length if chunk else None,
        "crc32c": chunk.crc32c if chunk else None,
        "decode_s": result.decode_s,
        "encode_s": result.encode_s,
    }


def _report(
    layout: ArrayLayout,
    shard: Shard,
    results: Sequence[ClipResult],
    chunks: Sequence[ChunkRef | None],
    table_bytes: int,
    write_s: float,
) -> ShardReport:
    counted = [
        (clip, result, chunk)
        for row, (clip, result, chunk) in enumerate(zip(shard.clips, results, chunks, strict=True))
        if row not in shard.retired
    ]
    num_ok = sum(result.ok for _, result, _ in counted)
    failed = [
        (clip.key, result.reason, result.message or "")
        for clip, result, _ in counted
        if result.reason is not None
    ]
    return ShardReport(
        bucket=shard.bucket.name,
        shard=shard.index,
        num_clips=len(counted),
        num_ok=num_ok,
        num_frames=num_ok * shard.bucket.frames,
        stored_bytes=sum(chunk.length for _, _, chunk in counted if chunk),
        table_bytes=table_bytes,
        raw_bytes=num_ok * math.prod(layout.shape) * ITEM_BYTES[layout.dtype],
        retired=sorted(shard.retired) or None,
        reasons=Counter(reason for _, reason, _ in failed),
        failures=failed[:NAMED_FAILURES],
        tiling_errors=[r.tiling_error for r in results if r.tiling_error is not None],
        psnrs_db=[r.psnr for r in results if r.psnr is not None],
        decode_s=sum(result.decode_s for result in results),
        fetch_s=sum(result.fetch_s for result in results),
        encode_s=sum(result.encode_s for result in results),
        write_s=write_s,
    )
