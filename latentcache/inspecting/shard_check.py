"""One committed shard, compared with its plan: its sample table, its object, and every clip in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import CorruptionError
from latentcache.format.manifest import Manifest
from latentcache.format.paths import sample_path
from latentcache.format.schemas import PLAN_SCHEMA, check_samples, object_facts
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.shards.ranges import longest_chunk
from latentcache.format.snapshot import summarise
from latentcache.format.tables import read_sized_table
from latentcache.storage.folder import Storage

#: Columns of a plan that its sample tables repeat; those kept from the corpus join them.
SHARED = ("key", "source", "start", "frames", "fps", "caption", "shard", "row")
#: Bytes of an object beside its chunks: Zarr's index of 16 bytes per row, Parquet's footer of 200.
ROW_OVERHEAD_BYTES = 1024
FILE_OVERHEAD_BYTES = 1 << 16


@dataclass(kw_only=True)
class ShardCheck:
    """What checking a shard found. problems: (path, what); summary: its row of the snapshot.

    num_clips, num_bytes: clips that were decompressed, and bytes that were read.
    """

    shard: ShardId
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: Mapping[str, Any] | None = None
    num_clips: int = 0
    num_bytes: int = 0


def check_shard(
    storage: Storage, manifest: Manifest, layout: ArrayLayout, shard: int, plan: pa.Table | None
) -> ShardCheck:
    """Check a shard. plan: its rows of the plan; None if that cannot be read."""
    bucket = layout.bucket.name
    check, path = ShardCheck(shard=ShardId(bucket, shard)), sample_path(bucket, shard)
    try:
        table, num_bytes = read_sized_table(storage, path)
        check_samples(table)
        facts = _facts(table, manifest, bucket, shard)
        check.summary = summarise(table, bucket, shard, num_bytes)
    except FileNotFoundError:
        check.notes.append(f"{path} was removed during the check")
        return check
    except CorruptionError as error:
        check.problems.append((path, str(error)))
        return check
    except ValueError as error:
        check.problems.append((path, f"it is not the sample table of this shard: {error}"))
        return check
    if plan is not None:
        check.problems += [(path, what) for what in _differences(table, plan, layout)]
    _check_object(storage, manifest, layout, shard, table, facts, check)
    return check


def _facts(
    table: pa.Table, manifest: Manifest, bucket: str, shard: int
) -> Mapping[str, Any] | None:
    """Return size and CRC32C of the shard object; None if there is none. Raises ValueError."""
    facts = object_facts(table, manifest.fingerprint)
    if {*table["bucket"].to_pylist()} != {bucket} or {*table["shard"].to_pylist()} != {shard}:
        raise ValueError("its rows are of another shard")
    return facts


def _differences(table: pa.Table, plan: pa.Table, layout: ArrayLayout) -> Iterator[str]:
    if table.num_rows != plan.num_rows:
        yield f"it has {table.num_rows} rows, but the plan has {plan.num_rows}"
        return
    kept = [name for name in plan.column_names if name not in PLAN_SCHEMA.names]
    for name in (*SHARED, *kept):
        # Compared as text, because NaN differs from itself but is the same value here.
        if name not in table.column_names or repr(table[name].to_pylist()) != repr(
            plan[name].to_pylist()
        ):
            yield f"its column {name} is not the plan's"
    sizes = {*zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)}
    if sizes != {(layout.bucket.height, layout.bucket.width)}:
        yield f"its clips have other sizes than {layout.bucket.name}"


def _check_object(
    storage: Storage,
    manifest: Manifest,
    layout: ArrayLayout,
    shard: int,
    table: pa.Table,
    facts: Mapping[str, Any] | None,
    check: ShardCheck,
) -> None:
    shard_format = get_format(manifest.format)
    path, chunks = shard_format.path(layout, shard), _chunks(table)
    if facts is None:
        if chunks:
            check.problems.append(
                (path, "its sample table has clips, but says that there is no object")
            )
        return
    data = _read_object(storage, layout, path, facts, check)
    if data is None:
        return
    check.num_bytes = len(data)
    before = len(check.problems)
    out = np.empty(layout.shape, numpy_dtype(layout.dtype))
    for key, chunk in chunks:
        what = _check_chunk(data, layout, chunk) or _decode(manifest, layout, data, chunk, out)
        if what:
            check.problems.append((path, f"clip {key!r}, row {chunk.row}: {what}"))
    check.num_clips = len(chunks)
    if google_crc32c.value(data) != facts["crc32c"] and len(check.problems) == before:
        check.problems.append((path, "bytes of its index, or between its clips, are damaged"))


def _read_object(
    storage: Storage, layout: ArrayLayout, path: str, facts: Mapping[str, Any], check: ShardCheck
) -> bytes | None:
    most = layout.shard_rows * (longest_chunk(layout) + ROW_OVERHEAD_BYTES) + FILE_OVERHEAD_BYTES
    size = facts["bytes"]
    if not 0 <= size <= most:
        check.problems.append((path, f"its sample table says {size} bytes, which is impossible"))
        return None
    try:
        data = storage.read_ranges(path, [(0, size + 1)])[0]
    except FileNotFoundError:
        check.problems.append((path, "it is missing, although its sample table is there"))
        return None
    if len(data) != size:
        more = "more" if len(data) > size else f"{len(data)}"
        check.problems.append((path, f"it should have {size} bytes, but has {more}"))
    return data


def _chunks(table: pa.Table) -> list[tuple[str, ChunkRef]]:
    names = ("key", "row", "offset", "length", "crc32c")
    rows = table.filter(pc.equal(table["status"], "ok")).select(names).to_pylist()
    return [(row.pop("key"), ChunkRef(**row)) for row in rows]


def _check_chunk(data: bytes, layout: ArrayLayout, chunk: ChunkRef) -> str | None:
    if not (0 < chunk.length <= longest_chunk(layout) and chunk.offset >= 0):
        return f"its sample table says {chunk.length} bytes at {chunk.offset}, which is impossible"
    block = np.frombuffer(data, np.uint8)[chunk.offset : chunk.offset + chunk.length]
    if len(block) < chunk.length:
        return f"the object ends {chunk.length - len(block)} bytes early"
    if google_crc32c.value(block) != chunk.crc32c:
        return "its bytes fail their CRC32C"
    return None


def _decode(
    manifest: Manifest, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array
) -> str | None:
    try:
        get_format(manifest.format).decode(layout, data, chunk, out)
    except ValueError as error:
        return f"it does not decompress ({error})"
    return _check_values(manifest.spec, out)


def _check_values(spec: LatentSpec, values: Array) -> str | None:
    """Say what is wrong with a sample's values, if any is NaN or infinite, or any id is too large."""
    if spec.ids is not None:
        bad = int((values >= spec.ids.codebook_size).sum())
        return f"{bad} ids are not below {spec.ids.codebook_size}" if bad else None
    bad = math.prod(values.shape) - int(np.isfinite(values.astype(np.float32)).sum())
    return f"{bad} values are not finite" if bad else None
