"""One batch of a loader: its samples are found, read, decompressed and transformed into one tensor.

Axes: B batch, C channels, t h w of the latent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from latentcache.reading.loader.fields import FieldsOfBatch
from latentcache.reading.loader.selection import ShardMap
from latentcache.reading.loader.targets import Staged, Target
from latentcache.reading.order.epoch import Batch
from latentcache.reading.shard_rows import ShardRows


class ReadBatch:
    """A batch to read: one part per shard, straight into the rows of one tensor."""

    def __init__(
        self,
        plan: ShardMap,
        batch: Batch,
        epoch: int,
        target: Target,
        *,
        check: bool = True,
        cache: int | None = None,
    ) -> None:
        self._plan, self._batch, self._epoch = plan, batch, epoch
        self._target, self._check, self._cache = target, check, cache
        self._name, self._shape = plan.names[batch.bucket], plan.shapes[batch.bucket]
        self.num_bytes = target.held_bytes(len(batch.rows), self._shape)
        if plan.fields:
            self.num_bytes += len(batch.rows) * plan.fields.sample_bytes(self._name)
        self._fields: FieldsOfBatch | None = None
        self._staged: Staged | None = None
        self._lock = threading.Lock()
        self._found: list[tuple[ShardRows, list[int], list[int]]] = []

    def parts(self) -> Sequence[Callable[[], None]]:
        """Return one part per shard, to be called in any order and by any thread."""
        return [
            _Part(self, shard, rows, where)
            for shard, (rows, where) in self._plan.places(self._batch).items()
        ]

    def _memory(self) -> Staged:
        """Return the batch's memory, taken only now: recently freed memory is still in CPU caches."""
        with self._lock:
            if self._staged is None:
                self._staged = self._target.stage(len(self._batch.rows), self._shape)
            return self._staged

    def _fields_memory(self) -> FieldsOfBatch | None:
        if not self._plan.fields:
            return None
        with self._lock:
            if self._fields is None:
                num = len(self._batch.rows)
                self._fields = self._plan.fields.stage(self._name, num, self._target)
            return self._fields

    def read(self, shard: int, rows: list[int], where: list[int]) -> None:
        """Read rows of one shard to their places in the batch."""
        cache, out = self._plan.cache, self._memory().rows(where)
        cache.read(self._name, shard, rows, out, check=self._check)
        table = cache.rows(self._name, shard)
        keys = table.column("key", rows)
        fields = self._fields_memory()
        if fields is not None:  # before latents are normalised in their place
            numbers = [table.chunks[row].row for row in rows]
            fields.read(shard, numbers, where, keys, self._epoch, out, check=self._check)
        self._memory().done(out, where, keys, self._epoch)
        self._found.append((table, rows, where))

    def finish(self) -> tuple[dict[str, Any], int]:
        """Return the batch, with latents that may still be on their way, and their bytes as stored."""
        names = self._plan.columns
        if names is None:
            names = ["key", "caption", *self._found[0][0].kept]
        columns: dict[str, list[Any]] = {n: [None] * len(self._batch.rows) for n in names}
        for table, rows, where in self._found:
            for name in names:
                for n, value in zip(where, table.column(name, rows), strict=True):
                    columns[name][n] = value
        num_bytes = len(self._batch.rows) * self._plan.shards[self._batch.bucket].sample_bytes
        latents = self._memory().finish()
        number = {} if self._cache is None else {"cache": self._cache}
        memory = self._fields_memory()
        fields = {} if memory is None else memory.finish()
        return {"latents": latents, **fields, **columns, "bucket": self._name, **number}, num_bytes


@dataclass(frozen=True)
class _Part:
    batch: ReadBatch
    shard: int
    rows: list[int]
    where: list[int]

    def __call__(self) -> None:
        self.batch.read(self.shard, self.rows, self.where)
