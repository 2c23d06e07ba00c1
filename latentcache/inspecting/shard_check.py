"""One committed shard, compared with its plan: its sample table, its object, and every clip in it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import CorruptionError
from latentcache.format.commit import derive_table, read_object
from latentcache.format.manifest import Manifest
from latentcache.format.paths import sample_path
from latentcache.format.planned_rows import (
    REPEATED,
    clips_facts,
    differs,
    facts_of_clips,
    kept_columns,
)
from latentcache.format.schemas import check_samples, object_facts
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout, Format
from latentcache.format.shards.ranges import longest_chunk
from latentcache.format.tables import from_parquet, read_sized_table
from latentcache.storage.folder import Storage

#: Columns of a plan that its sample tables repeat; those kept from the corpus join them.
SHARED = (*REPEATED, "shard", "row")


@dataclass(kw_only=True)
class ShardCheck:
    """What checking a shard found. problems: (path, what).

    rows: those whose clips are to be encoded again. is_spent: a clip that no longer counts is damaged,
    which is no problem. is_derived: the sample table is damaged, and its object, from which it is written
    again, is not. num_clips, num_bytes: clips that were decompressed, and bytes that were read. outcomes:
    row, status and length of the sample table, None if it is damaged; table_bytes: of its file.
    """

    shard: ShardId
    problems: list[tuple[str, str]] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)
    is_spent: bool = False
    is_derived: bool = False
    num_clips: int = 0
    num_bytes: int = 0
    outcomes: pa.Table | None = None
    table_bytes: int = 0


def check_shard(
    storage: Storage,
    manifest: Manifest,
    layout: ArrayLayout,
    shard: ShardId,
    plan: pa.Table | None,
    retired: Collection[int] = (),
) -> ShardCheck:
    """Check a shard. plan: its rows of the plan, None if that cannot be read.

    retired: rows that no longer count, in which damage is no problem.
    """
    check, shard_format = ShardCheck(shard=shard), get_format(manifest.format)
    path, all_rows = shard_format.path(layout, shard.number), set(range(manifest.num_rows(shard)))
    data = _read_object(storage, shard_format, layout, shard, check)
    embedded = None if data is None else _embedded(shard_format, layout, data, manifest)
    table = _read_derived(storage, manifest, shard, embedded, check)
    if table is None:
        check.rows = all_rows
        return check
    if plan is not None:
        wrong = [(sample_path(*shard), what) for what in _differences(table, plan, layout)]
        check.problems += wrong
        check.rows |= all_rows if wrong else set()
    if data is None:
        check.rows = all_rows
        return check
    _check_clips(manifest, layout, path, data, table, retired, check)
    facts = object_facts(table, manifest.fingerprint)
    if google_crc32c.value(data) != facts["crc32c"] and not (check.problems or check.is_spent):
        check.problems.append((path, "bytes of its index, or between its clips, are damaged"))
        check.rows = all_rows
    return check


def _read_object(
    storage: Storage,
    shard_format: Format,
    layout: ArrayLayout,
    shard: ShardId,
    check: ShardCheck,
) -> bytes | None:
    path = shard_format.path(layout, shard.number)
    try:
        data = read_object(storage, shard_format, layout, shard.number)
    except CorruptionError as error:
        check.problems.append((path, str(error)))
        return None
    if data is None:
        check.problems.append((path, "it is missing, although its sample table is there"))
        return None
    check.num_bytes = len(data)
    return data


def _embedded(
    shard_format: Format, layout: ArrayLayout, data: bytes, manifest: Manifest
) -> bytes | None:
    """Return the sample table that the object gives, None if it gives none."""
    try:
        return derive_table(shard_format, layout, data, manifest.fingerprint)
    except (ValueError, CorruptionError):
        return None


def _read_derived(
    storage: Storage,
    manifest: Manifest,
    shard: ShardId,
    embedded: bytes | None,
    check: ShardCheck,
) -> pa.Table | None:
    """Return the sample table, from its object if it is itself damaged; None if neither can be read."""
    path = sample_path(*shard)
    try:
        table, table_bytes = read_sized_table(storage, path)
        check_samples(table)
        object_facts(table, manifest.fingerprint)
        _check_place(table, shard)
    except (FileNotFoundError, CorruptionError, ValueError) as error:
        check.problems.append((path, f"it is not the sample table of this shard: {error}"))
        if embedded is None:
            return None
        check.is_derived = True
        return from_parquet(embedded)
    check.outcomes, check.table_bytes = table.select(["row", "status", "length"]), table_bytes
    return table


def _check_place(table: pa.Table, shard: ShardId) -> None:
    places = {*zip(table["bucket"].to_pylist(), table["shard"].to_pylist(), strict=True)}
    if places != {tuple(shard)}:
        raise ValueError("its rows are of another shard")


def _check_clips(
    manifest: Manifest,
    layout: ArrayLayout,
    path: str,
    data: bytes,
    table: pa.Table,
    retired: Collection[int],
    check: ShardCheck,
) -> None:
    out = np.empty(layout.shape, numpy_dtype(layout.dtype))
    chunks = _chunks(table)
    for key, chunk in chunks:
        what = _check_chunk(data, layout, chunk) or _decode(manifest, layout, data, chunk, out)
        if what and chunk.row in retired:
            check.is_spent = True
        elif what:
            check.problems.append((path, f"clip {key!r}, row {chunk.row}: {what}"))
            check.rows.add(chunk.row)
    check.num_clips = len(chunks)


def _differences(table: pa.Table, plan: pa.Table, layout: ArrayLayout) -> Iterator[str]:
    if table.num_rows != plan.num_rows:
        yield f"it has {table.num_rows} rows, but the plan has {plan.num_rows}"
        return
    said = facts_of_clips(table)
    if said and said != clips_facts(plan):
        yield "its clips are of other files, or of other frames, than the plan's"
    for name in (*SHARED, *kept_columns(plan)):
        if differs(table, plan, name):
            yield f"its column {name} is not the plan's"
    sizes = {*zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)}
    if sizes != {(layout.bucket.height, layout.bucket.width)}:
        yield f"its clips have other sizes than {layout.bucket.name}"


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
