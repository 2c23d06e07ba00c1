"""One batch of a loader: its samples are found, read, decompressed and transformed into one tensor.

Axes: B batch, C channels, t h w of the latent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from latentcache.reading.loader.damage import Damage
from latentcache.reading.loader.fields import FieldsOfBatch
from latentcache.reading.loader.selection import Rows, ShardMap
from latentcache.reading.loader.targets import Staged, Target
from latentcache.reading.order.epoch import Batch
from latentcache.reading.per_frame import stack_per_frame
from latentcache.reading.shard_rows import ShardRows
from latentcache.reading.time_ids import stacked


@dataclass(frozen=True, kw_only=True)
class Read:
    """A batch that was read. batch: without `latents` if none of its clips could be read.

    num_samples: in it. num_bytes: of latents as stored. num_skipped: damaged clips that are not in it.
    """

    batch: dict[str, Any]
    num_samples: int
    num_bytes: int
    num_skipped: int


class ReadBatch:
    """A batch to read: one part per shard, straight into the rows of one tensor."""

    def __init__(
        self,
        plan: ShardMap,
        batch: Batch,
        epoch: int,
        target: Target,
        *,
        damage: Damage,
        check: bool = True,
        cache: int | None = None,
        layout: str | None = None,
    ) -> None:
        self._plan, self._batch, self._epoch = plan, batch, epoch
        self._target, self._check, self._cache = target, check, cache
        self._damage, self._layout = damage, layout
        #: Batches of other buckets have other shapes.
        self.kind = (cache, batch.bucket)
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
            _Part(self, shard, found)
            for shard, found in self._plan.places(self._batch, self._epoch).items()
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
                self._fields = self._plan.fields.stage(self._name, num, self._fields_target())
            return self._fields

    def _fields_target(self) -> Target:
        """Return where fields go."""
        return self._target

    def read(self, shard: int, found: Rows) -> None:
        """Read rows of one shard to their places in the batch."""
        rows, where, visits = found.rows, found.where, found.visits
        cache, out = self._plan.cache, self._memory().rows(where)
        read = self._damage.read(cache, self._name, shard, rows, out, check=self._check)
        if len(read) < len(rows):
            rows, where = [rows[n] for n in read], [where[n] for n in read]
            out, visits = [out[n] for n in read], [visits[n] for n in read]
        if rows:
            table = cache.rows(self._name, shard)
            keys = table.column("key", rows)
            fields = self._fields_memory()
            if fields is not None:  # before latents are normalised in their place
                numbers = [table.chunks[row].row for row in rows]
                fields.read(shard, numbers, where, keys, visits, out, check=self._check)
            self._memory().done(out, where, keys, visits)
            self._found.append((table, rows, where))

    def name_of(self, shard: int) -> str:
        """Say which shard and file a part reads."""
        return self._plan.cache.name_of(self._name, shard)

    def finish(self) -> Read:
        """Return the batch, with latents that may still be on their way."""
        num = len(self._batch.rows)
        sound = sorted(n for _, _, where in self._found for n in where)
        arriving = self._memory().finish()
        if self._layout is not None:
            arriving = self._target.arrange(arriving, self._layout)
        if len(sound) < num:
            arriving = replace(arriving, keep=sound)
        columns = self._columns(num)
        batch: dict[str, Any] = {n: [values[i] for i in sound] for n, values in columns.items()}
        batch.update(self._per_frame(batch))
        batch.update(self._sizes(batch))
        number = {} if self._cache is None else {"cache": self._cache}
        memory = self._fields_memory()
        fields = {} if memory is None else memory.finish()
        whole = {"latents": arriving, **fields, **batch, "bucket": self._name, **number}
        return Read(
            batch=whole if sound else {},
            num_samples=len(sound),
            num_bytes=len(sound) * self._plan.shards[self._batch.bucket].sample_bytes,
            num_skipped=num - len(sound),
        )

    def _columns(self, num: int) -> dict[str, list[Any]]:
        """Return the batch's columns; null for clips that could not be read."""
        names = self._plan.columns
        if names is None:
            tables = [table for table, _, _ in self._found]
            names = ["key", "caption", *self._plan.cache.kept_by(tables)]
        columns: dict[str, list[Any]] = {name: [None] * num for name in names}
        for table, rows, where in self._found:
            for name in names:
                for n, value in zip(where, table.column(name, rows), strict=True):
                    columns[name][n] = value
        return columns

    def _per_frame(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        """Return the batch's values per frame as tensors [B, T] or [B, T, n]."""
        names = {name for table, _, _ in self._found for name in table.per_frame}
        stacked = {n: stack_per_frame(v, self._plan.frames) for n, v in batch.items() if n in names}
        is_tensor = torch.is_tensor
        return {n: self._target.send_plain(v) if is_tensor(v) else v for n, v in stacked.items()}

    def _sizes(self, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return `time_ids` [B, 6], if they are asked for."""
        return {n: self._target.send_plain(v) for n, v in stacked(columns).items()}


@dataclass(frozen=True)
class _Part:
    batch: ReadBatch
    shard: int
    found: Rows

    def __call__(self) -> None:
        self.batch.read(self.shard, self.found)

    def __str__(self) -> str:
        return self.batch.name_of(self.shard)
