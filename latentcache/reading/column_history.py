"""Captions and kept columns of a cache's shards, as they stood in each of its generations."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from latentcache.core.lru import Lru
from latentcache.core.records import ShardId
from latentcache.format.columns import read_columns
from latentcache.format.fields.manifest import Version
from latentcache.format.manifest import BucketInfo, Manifest
from latentcache.format.paths import columns_index_path
from latentcache.format.samples import read_all_rows
from latentcache.format.schemas import CHANGED_SCHEMA
from latentcache.format.tables import read_checked
from latentcache.storage.folder import Storage

#: Tables kept in memory: those of a few shards, which all fields of a cache are compared by.
MAX_TABLES = 64


class ColumnHistory:
    """Which generation changed a shard's columns, and what they were. Safe for threads and when pickled.

    Reads nothing of a cache whose columns have never changed.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage, self.manifest = storage, manifest
        self.now = len(manifest.generations)
        self._tables: Lru[tuple[ShardId, str | None, tuple[str, ...]], pa.Table] = Lru(MAX_TABLES)

    def __reduce__(self) -> tuple[Any, ...]:
        known = {n: v for n, v in self.__dict__.items() if n == "_changes"}
        return type(self), (self._storage, self.manifest), known

    @functools.cached_property
    def _changes(self) -> Mapping[ShardId, tuple[list[int], list[str]]]:
        """The generations that changed each shard's columns, in order, and their folders."""
        found: dict[ShardId, tuple[list[int], list[str]]] = {}
        for generation in self.manifest.generations:
            if not generation.num_relabelled:
                continue
            path = columns_index_path(generation.folder)
            table = read_checked(self._storage, path, CHANGED_SCHEMA)
            places = (table[name].to_pylist() for name in ("bucket", "shard"))
            for bucket, shard in zip(*places, strict=True):
                numbers, folders = found.setdefault(ShardId(bucket, shard), ([], []))
                numbers.append(generation.number)
                folders.append(generation.folder)
        return found

    @property
    def changed(self) -> Mapping[ShardId, int]:
        """The shards whose columns have changed, and the generation that did so last."""
        return {shard: numbers[-1] for shard, (numbers, _) in self._changes.items()}

    def folder(self, shard: ShardId, generation: int) -> str | None:
        """Return the folder of the generation that changed a shard's columns last, as of a generation.

        None: they were as planned.
        """
        numbers, folders = self._changes.get(shard, ((), ()))
        at = bisect.bisect_right(numbers, generation)
        return folders[at - 1] if at else None

    def pinned(self, version: Version, shard: ShardId) -> int:
        """Return the generation as of which a version reads a shard: of later shards, their own."""
        planned_in = self._buckets[shard.bucket].part_of(shard.number)[0].number
        return min(max(version.generation, planned_in), self.now)

    def num_rows(self, shard: ShardId) -> int:
        """Return how many rows a shard has, retired ones too."""
        return self.manifest.num_rows(shard)

    @functools.cached_property
    def _buckets(self) -> Mapping[str, BucketInfo]:
        return {bucket.name: bucket for bucket in self.manifest.buckets}

    def table(self, shard: ShardId, folder: str | None, names: Sequence[str]) -> pa.Table:
        """Return `row` and those of some columns that a shard had. folder: as `folder` returns it.

        The shard must be committed. Raises CorruptionError.
        """
        key = (shard, folder, tuple(names))
        return self._tables.get_or_make(key, lambda: self._read(*key))

    def _read(self, shard: ShardId, folder: str | None, names: tuple[str, ...]) -> pa.Table:
        if folder is None:
            table = read_all_rows(self._storage, self.manifest.fingerprint, shard, ["row", *names])
        else:
            table = read_columns(self._storage, folder, shard)
        return table.select([n for n in ("row", *names) if n in table.column_names])
