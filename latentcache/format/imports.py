"""Rows that a cache's first generation copies from other caches, its parents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentcache.core.records import ClipId, ShardId
from latentcache.format.damage import damaged
from latentcache.format.generations import Generation, Parent
from latentcache.format.paths import imported_path
from latentcache.format.schemas import IMPORTED_SCHEMA
from latentcache.format.tables import read_checked
from latentcache.storage.folder import Storage


@dataclass(frozen=True, kw_only=True)
class Import:
    """What a row is copied from: a clip of another cache, at its place there."""

    parent: Parent
    clip: ClipId


class Imports(Mapping[ShardId, Mapping[int, Import]]):
    """The imported rows of a generation, by shard and row."""

    def __init__(self, table: pa.Table, generation: Generation) -> None:
        self._parents = generation.parents
        buckets = table["bucket"].combine_chunks().dictionary_encode()
        self._names: list[str] = buckets.dictionary.to_pylist()
        codes = buckets.indices.to_numpy().astype(np.int64)
        columns = [codes, *(table[name].to_numpy() for name in IMPORTED_SCHEMA.names[1:])]
        rows = np.stack([np.asarray(column, np.int64) for column in columns], axis=1)
        self._rows: npt.NDArray[np.int64] = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        places, firsts = np.unique(self._rows[:, :2], axis=0, return_index=True)
        ends = [*firsts[1:].tolist(), len(rows)]
        self._spans = {
            ShardId(self._names[code], number): (first, end)
            for (code, number), first, end in zip(
                places.tolist(), firsts.tolist(), ends, strict=True
            )
        }

    def __getitem__(self, shard: ShardId) -> Mapping[int, Import]:
        first, end = self._spans[shard]
        return {
            row: Import(
                parent=self._parents[parent],
                clip=ClipId(shard=ShardId(shard.bucket, from_shard), row=from_row),
            )
            for _, _, row, parent, from_shard, from_row in self._rows[first:end].tolist()
        }

    def __iter__(self) -> Iterator[ShardId]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def read_imports(storage: Storage, generation: Generation) -> Imports:
    """Read which rows of a generation are copied from which caches. Raises CorruptionError."""
    path = imported_path(generation.folder)
    table = read_checked(storage, path, IMPORTED_SCHEMA)
    parents = table["parent"].to_numpy()
    if len(parents) and not 0 <= parents.min() <= parents.max() < len(generation.parents):
        raise damaged(storage, path, "names a cache that its generation does not")
    return Imports(table, generation)
