"""Rows of a committed shard as they are stored: what became of each clip, and its compressed bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ChunkRef, ClipResult, ShardId
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest
from latentcache.format.paths import sample_path
from latentcache.format.samples import read_all_rows
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import StoredChunk
from latentcache.storage.folder import Storage

_RESULT = tuple(field.name for field in dataclasses.fields(ClipResult))


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """One row. chunk: None if the clip failed."""

    key: str
    result: ClipResult
    chunk: StoredChunk | None


def read_rows(
    storage: Storage, manifest: Manifest, shard: ShardId, rows: Sequence[int]
) -> Mapping[int, StoredRow]:
    """Return some rows of a committed shard, whose bytes pass their CRC32C. Raises CorruptionError."""
    table = read_all_rows(storage, manifest.fingerprint, shard)
    wanted = table.filter(pc.is_in(table["row"], value_set=pa.array(rows, pa.int32())))
    found = {row["row"]: row for row in wanted.to_pylist()}
    if missing := sorted(set(rows) - found.keys()):
        raise damaged(storage, sample_path(*shard), f"has no row {missing[0]}")
    refs = [_chunk(row) for row in found.values() if row["status"] == "ok"]
    layout, shard_format = manifest.layouts()[shard.bucket], get_format(manifest.format)
    taken = shard_format.take(storage, layout, shard.number, refs) if refs else []
    chunks = {ref.row: chunk for ref, chunk in zip(refs, taken, strict=True)}
    return {
        number: StoredRow(key=row["key"], result=_result(row), chunk=chunks.get(number))
        for number, row in found.items()
    }


def _chunk(row: Mapping[str, Any]) -> ChunkRef:
    return ChunkRef(**{name: row[name] for name in ("row", "offset", "length", "crc32c")})


def _result(row: Mapping[str, Any]) -> ClipResult:
    """Return what a sample table says became of a clip; a time that it lacks is 0."""
    found = {name: row[name] for name in _RESULT}
    return ClipResult(**{**found, **{n: found[n] or 0.0 for n in ("decode_s", "encode_s")}})
