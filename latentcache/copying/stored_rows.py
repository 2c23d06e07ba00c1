"""Rows of a committed shard as they are stored: what became of each clip, and its compressed bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef, ClipResult, PictureFacts, ShardId
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest
from latentcache.format.paths import QUANTISER, sample_path
from latentcache.format.quantiser import read_quantiser_bytes, write_quantiser
from latentcache.format.samples import read_all_rows
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import StoredChunk
from latentcache.storage.folder import Storage

#: What a sample table keeps of a result: all but these, which are other columns, or only a run's.
_RESULT = tuple(
    f.name for f in dataclasses.fields(ClipResult) if f.name not in ("picture", "fetch_s")
)
_PICTURE = tuple(f.name for f in dataclasses.fields(PictureFacts))


@dataclass(frozen=True, kw_only=True)
class OpenCache:
    """A cache that rows are read from."""

    storage: Storage
    manifest: Manifest

    @property
    def chunk_form(self) -> tuple[str, str, int | None]:
        """What chunks of two caches have in common that can be in one shard."""
        manifest = self.manifest
        return manifest.format, manifest.compression["codec"], manifest.chunk_frames


def copy_quantiser(origin: OpenCache, storage: Storage, manifest: Manifest) -> None:
    """Give a copy in `storage` the quantiser of the cache that it has its recipe from."""
    if manifest.quantiser_sha256 is not None and not storage.exists(QUANTISER):
        data = read_quantiser_bytes(origin.storage, origin.manifest)
        write_quantiser(storage, manifest, data)


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """One row. latents: of an ok clip, its compressed bytes, or an array if that is asked for."""

    key: str
    result: ClipResult
    latents: StoredChunk | Array | None


def read_rows(
    cache: OpenCache, shard: ShardId, rows: Sequence[int], *, decompress: bool
) -> Mapping[int, StoredRow]:
    """Return some rows of a committed shard, whose bytes pass their CRC32C. Raises CorruptionError."""
    storage, manifest = cache.storage, cache.manifest
    table = read_all_rows(storage, manifest.fingerprint, shard)
    wanted = table.filter(pc.is_in(table["row"], value_set=pa.array(rows, pa.int32())))
    own = [name for name in SAMPLE_SCHEMA.names if name in wanted.column_names]
    found = {row["row"]: row for row in wanted.select(own).to_pylist()}
    if missing := sorted(set(rows) - found.keys()):
        raise damaged(storage, sample_path(*shard), f"has no row {missing[0]}")
    refs = [_chunk(row) for row in found.values() if row["status"] == "ok"]
    taken = _take(cache, shard, refs, decompress) if refs else []
    latents = {ref.row: value for ref, value in zip(refs, taken, strict=True)}
    return {
        number: StoredRow(key=row["key"], result=_result(row), latents=latents.get(number))
        for number, row in found.items()
    }


def _take(
    cache: OpenCache, shard: ShardId, refs: Sequence[ChunkRef], decompress: bool
) -> Sequence[StoredChunk | Array]:
    layout = cache.manifest.layouts()[shard.bucket]
    member = get_format(cache.manifest.format)
    if not decompress:
        return member.take(cache.storage, layout, shard.number, refs)
    out = [np.empty(layout.shape, numpy_dtype(layout.dtype)) for _ in refs]
    member.read(cache.storage, layout, shard.number, refs, out)
    return out


def _chunk(row: Mapping[str, Any]) -> ChunkRef:
    return ChunkRef(**{name: row[name] for name in ("row", "offset", "length", "crc32c")})


def _result(row: Mapping[str, Any]) -> ClipResult:
    """Return what a sample table says became of a clip; a time that it lacks is 0."""
    found = {name: row[name] for name in _RESULT}
    times = {name: found[name] or 0.0 for name in ("decode_s", "encode_s")}
    return ClipResult(**{**found, **times}, picture=_picture(row))


def _picture(row: Mapping[str, Any]) -> PictureFacts | None:
    """Return what a sample table says of the pictures; None for a clip that was not decoded."""
    found: dict[str, Any] = {name: row.get(name) for name in _PICTURE}
    if all(value is None for value in found.values()):
        return None
    return PictureFacts(**found)
