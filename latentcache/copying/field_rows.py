"""A field that rows are copied from: its newest committed samples, and their bytes as they are stored."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from latentcache.config.fields import stored_field
from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.fields import FieldArray
from latentcache.core.lru import Lru
from latentcache.core.records import ChunkRef, ShardId
from latentcache.errors import ConfigError, CorruptionError
from latentcache.format.damage import read_twice
from latentcache.format.fields.commit import Sample, chunk_refs, read_field_table
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.snapshot import Part, committed_parts, rows_of
from latentcache.format.fields.taken import Texts
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import StoredChunk
from latentcache.planning.fields.inputs import TextInputs
from latentcache.planning.planned import PlannedCache

#: Shards whose newest rows are kept in memory.
MAX_SHARDS = 256


@dataclass(frozen=True, kw_only=True)
class NewestRow:
    """A row's newest committed version. positions: its samples in the version's sample table.

    None where the table cannot be read.
    """

    version: int
    positions: tuple[int, ...] | None


class FieldSource:
    """A field of a cache. Not for several threads, but for `take`."""

    def __init__(self, cache: PlannedCache, field: FieldManifest) -> None:
        self.cache, self.field = cache, field
        self._newest: Lru[ShardId, Mapping[int, NewestRow]] = Lru(MAX_SHARDS)
        config = stored_field(field.name, dict(field.settings))
        self._columns = config.columns
        self._inputs = TextInputs(cache, config)

    @property
    def chunk_form(self) -> tuple[str, str]:
        """What stored chunks of two caches have in common that can be in one shard."""
        return self.cache.manifest.format, self.cache.manifest.compression["codec"]

    @functools.cached_property
    def _parts(self) -> Mapping[ShardId, Sequence[int]]:
        """The committed versions of each shard, the newest first."""
        found: dict[ShardId, list[int]] = {}
        for part in committed_parts(self.cache.storage, self.field, self.cache.manifest):
            found.setdefault(part.shard, []).insert(0, part.version)
        return found

    def newest(self, shard: ShardId) -> Mapping[int, NewestRow]:
        """Return the rows of a shard that are committed, by row."""
        return self._newest.get_or_make(shard, lambda: self._find_newest(shard))

    def _find_newest(self, shard: ShardId) -> Mapping[int, NewestRow]:
        found: dict[int, NewestRow] = {}
        for version in self._parts.get(shard, ()):
            places = self._places(version, shard)
            found |= {
                row: NewestRow(version=version, positions=at)
                for row, at in places.items()
                if row not in found
            }
        return found

    def _places(self, version: int, shard: ShardId) -> Mapping[int, tuple[int, ...] | None]:
        try:
            table = self.table(version, shard)
        except CorruptionError:
            part = Part(version, shard)
            return dict.fromkeys(rows_of(self.field, self.cache.manifest, part))
        places: dict[int, tuple[int, ...]] = {}
        for position, row in enumerate(table["row"].to_pylist()):
            places[row] = (*places.get(row, ()), position)
        return places

    def table(self, version: int, shard: ShardId) -> pa.Table:
        """Return a sample table. Raises CorruptionError."""
        return read_field_table(self.cache.storage, self.field, version, shard)[0]

    def is_current(self, shard: ShardId, row: int, version: int, texts: Texts | None) -> bool:
        """Tell whether a version is the newest of a row, and encodes these texts. None: any."""
        versions = [v for v in self.field.all_versions if v.rows is None or shard in v.rows]
        holding = [v for v in versions if v.rows is None or row in v.rows[shard]]
        newest = holding[-1]
        if newest.number != version:
            return False
        pin = self._inputs.pinned(newest, shard)
        own = self.texts(shard, pin)
        most = self._inputs.num_paths + self.field.choices
        return own is None or texts is None or own[row][:most] == texts[:most]

    def texts(self, shard: ShardId, generation: int) -> Sequence[Texts] | None:
        """Return the texts of a shard's rows as of a generation; None if the field reads none.

        None too if the column is not kept any more, for then there is nothing to compare values with.
        """
        if not self._columns:
            return None
        try:
            return self._texts(shard, generation)
        except ConfigError:
            return None

    @functools.lru_cache(maxsize=MAX_SHARDS)  # noqa: B019 - a source lives as long as a job
    def _texts(self, shard: ShardId, generation: int) -> Sequence[Texts]:
        return self._inputs.of(shard, generation)

    def first_texts(self, shard: ShardId) -> Sequence[Texts] | None:
        """Return the texts that the first version reads of a shard."""
        return self.texts(shard, self._inputs.pinned(self.field.all_versions[0], shard))

    def take(
        self,
        shard: ShardId,
        version: int,
        positions: Sequence[int],
        *,
        decompress: bool,
    ) -> list[Sample]:
        """Return samples of a sample table as they are stored, in its order. Raises CorruptionError.

        decompress: their arrays are as `commit_field_shard` takes them, else stored chunks. Their rows are
        those of `shard`.
        """
        return read_twice(lambda: self._take(shard, version, positions, decompress=decompress))

    def _take(
        self, shard: ShardId, version: int, positions: Sequence[int], *, decompress: bool
    ) -> list[Sample]:
        table = self.table(version, shard)
        rows = table.take(pa.array(positions, pa.int64())).to_pylist()
        ok = [n for n, row in enumerate(rows) if row["status"] == "ok"]
        at = [positions[n] for n in ok]
        layouts = self.field.layouts(self.cache.manifest, version, shard.bucket)
        stored: list[Sequence[Array] | Sequence[StoredChunk]] = []
        lengths: list[list[int | None]] = []
        for array, layout in zip(self.field.arrays, layouts, strict=True):
            refs = chunk_refs(table, array, self.field.choices, at)
            lengths.append([_length(array, rows[n]) for n in ok])
            member = get_format(self.cache.manifest.format)
            if not decompress:
                taken = member.take(self.cache.storage, layout, shard.number, refs) if refs else []
                stored.append(taken)
                continue
            out = [np.empty(layout.shape, numpy_dtype(layout.dtype)) for _ in refs]
            if refs:
                member.read(self.cache.storage, layout, shard.number, refs, out)
            stored.append(_own_parts(array, out, lengths[-1], refs))
        samples = [_sample(row) for row in rows]
        for i, n in enumerate(ok):
            samples[n] = replace(
                samples[n],
                arrays=cast(Any, [of_array[i] for of_array in stored]),
                lengths=[of_array[i] for of_array in lengths],
            )
        return samples


def _length(array: FieldArray, row: Mapping[str, Any]) -> int | None:
    if not array.ragged:
        return None
    length: int | None = row[f"{array.name}.tokens" if array.name else "tokens"]
    return length


def _own_parts(
    array: FieldArray,
    whole: Sequence[Array],
    lengths: Sequence[int | None],
    refs: Sequence[ChunkRef],
) -> list[Array]:
    """Return samples without their padding. Those that share their bytes are the same object."""
    found: list[Array] = []
    firsts: dict[int, Array] = {}
    for sample, length, ref in zip(whole, lengths, refs, strict=True):
        if length is not None:
            sample = sample[len(sample) - length :] if array.side == "left" else sample[:length]
        found.append(firsts.setdefault(ref.offset, sample))
    return found


def _sample(row: Mapping[str, Any]) -> Sample:
    names = ("key", "row", "choice", "input_sha", "tokens", "reason", "message")
    return Sample(**{name: row[name] for name in names}, lost_tokens=row["lost_tokens"] or 0)
