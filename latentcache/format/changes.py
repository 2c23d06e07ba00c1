"""What generations have changed of shards: rows that no longer count, captions and kept columns.

A row that is copied into another shard, and its copy, are one clip, of which exactly one row counts:

- The last of them whose shard is committed. So a clip counts once, whenever compacting is stopped.
- None, if a generation has retired any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ClipId, ShardId
from latentcache.format.damage import damaged
from latentcache.format.generations import Generation
from latentcache.format.manifest import Manifest
from latentcache.format.paths import columns_index_path, copied_path, retired_path
from latentcache.format.schemas import CHANGED_SCHEMA, COPIED_SCHEMA, RETIRED_SCHEMA
from latentcache.format.tables import read_checked
from latentcache.storage.folder import Storage

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Which rows count among some committed shards.

    retired: rows that do not, by shard; columns: the folder of the generation that changed a shard's
    columns last.
    """

    retired: Mapping[ShardId, frozenset[int]] = field(default_factory=dict)
    columns: Mapping[ShardId, str] = field(default_factory=dict)

    def rows(self, shard: ShardId) -> list[int]:
        """Return the retired rows of a shard, in order."""
        return sorted(self.retired.get(shard, ()))

    def retired_shards(self, manifest: Manifest) -> set[ShardId]:
        """Return the shards none of whose rows counts: they need not be encoded, and may be cleaned."""
        return {
            shard for shard, rows in self.retired.items() if len(rows) >= manifest.num_rows(shard)
        }


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Rows of one shard that are copied into other shards of its bucket, and where each goes."""

    rows: Numbers
    into_shards: Numbers
    into_rows: Numbers

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(
            *(a.tolist() for a in (self.rows, self.into_shards, self.into_rows)), strict=True
        )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What generations say. retired: rows of clips that were retired, copies and originals alike."""

    retired: Mapping[ShardId, frozenset[int]] = field(default_factory=dict)
    columns: Mapping[ShardId, str] = field(default_factory=dict)
    copies: Mapping[ShardId, Copies] = field(default_factory=dict)

    def among(self, committed: Collection[ShardId]) -> Standing:
        """Return which rows count if these shards are committed; of a snapshot, those that it holds."""
        if not self.copies:
            return Standing(retired=self.retired, columns=self.columns)
        replaced: dict[ShardId, frozenset[int]] = {}
        for shard in sorted(self.copies, reverse=True):  # for copies lie in later shards
            replaced[shard] = _replaced(shard.bucket, self.copies[shard], committed, replaced)
        return Standing(retired=_united(self.retired, replaced), columns=self.columns)

    def planned(self) -> Standing:
        """Return which rows will count once every planned shard is committed."""
        copied = {shard: frozenset(c.rows.tolist()) for shard, c in self.copies.items()}
        return Standing(retired=_united(self.retired, copied), columns=self.columns)

    def last(self, clip: ClipId) -> ClipId:
        """Return the last copy of a row, the row itself if there is none."""
        while (copies := self.copies.get(clip.shard)) is not None:
            found = np.flatnonzero(copies.rows == clip.row)
            if not len(found):
                break
            at = int(found[0])
            shard = ShardId(clip.shard.bucket, int(copies.into_shards[at]))
            clip = ClipId(shard=shard, row=int(copies.into_rows[at]))
        return clip

    def origins(self, shard: ShardId) -> Mapping[int, ClipId]:
        """Return what the rows of a shard are copied from, by row; nothing if it is to be encoded."""
        return {
            into_row: ClipId(shard=origin, row=row)
            for origin in self._origin_shards.get(shard, ())
            for row, into_shard, into_row in self.copies[origin]
            if into_shard == shard.number
        }

    @functools.cached_property
    def _origin_shards(self) -> Mapping[ShardId, list[ShardId]]:
        found: dict[ShardId, list[ShardId]] = {}
        for origin, copies in self.copies.items():
            for number in np.unique(copies.into_shards).tolist():
                found.setdefault(ShardId(origin.bucket, number), []).append(origin)
        return found


def _replaced(
    bucket: str,
    copies: Copies,
    committed: Collection[ShardId],
    later: Mapping[ShardId, frozenset[int]],
) -> frozenset[int]:
    """Return the rows of which a copy is committed. later: such rows of later shards."""
    targets = {number: ShardId(bucket, number) for number in set(copies.into_shards.tolist())}
    if all(target in committed for target in targets.values()):
        return frozenset(copies.rows.tolist())
    return frozenset(
        row
        for row, number, into_row in copies
        if targets[number] in committed or into_row in later.get(targets[number], ())
    )


def _united(
    one: Mapping[ShardId, frozenset[int]], other: Mapping[ShardId, frozenset[int]]
) -> Mapping[ShardId, frozenset[int]]:
    empty: frozenset[int] = frozenset()
    found = {shard: one.get(shard, empty) | rows for shard, rows in other.items() if rows}
    return {**one, **found}


def read_changes(storage: Storage, manifest: Manifest) -> Changes:
    """Read what the generations of a manifest have changed. Raises CorruptionError."""
    retired: dict[ShardId, frozenset[int]] = {}
    columns: dict[ShardId, str] = {}
    copies: dict[ShardId, Copies] = {}
    for generation in manifest.generations:
        if generation.num_retired:
            table = read_checked(storage, retired_path(generation.folder), RETIRED_SCHEMA)
            retired.update(_united(retired, _by_shard(table)))
        if generation.num_copied:
            fresh = _read_copies(storage, generation)
            if copies.keys() & fresh.keys():
                path = copied_path(generation.folder)
                raise damaged(storage, path, "copies rows of shards that were copied before")
            copies.update(fresh)
        if generation.num_relabelled:
            table = read_checked(storage, columns_index_path(generation.folder), CHANGED_SCHEMA)
            for bucket, number in zip(
                table["bucket"].to_pylist(), table["shard"].to_pylist(), strict=True
            ):
                columns[ShardId(bucket, number)] = generation.folder
    return Changes(retired=_spread(retired, copies), columns=columns, copies=copies)


def _spread(
    retired: Mapping[ShardId, frozenset[int]], copies: Mapping[ShardId, Copies]
) -> Mapping[ShardId, frozenset[int]]:
    """Return retired rows, and all copies and originals of each."""
    if not copies:
        return retired
    found = {shard: set(rows) for shard, rows in retired.items()}
    ordered = sorted(copies)
    for shard in ordered:  # from originals to copies, which lie in later shards
        for row, number, into_row in copies[shard] if shard in found else ():
            if row in found[shard]:
                found.setdefault(ShardId(shard.bucket, number), set()).add(into_row)
    for shard in reversed(ordered):
        for row, number, into_row in copies[shard]:
            if into_row in found.get(ShardId(shard.bucket, number), ()):
                found.setdefault(shard, set()).add(row)
    return {shard: frozenset(rows) for shard, rows in found.items()}


def _read_copies(storage: Storage, generation: Generation) -> dict[ShardId, Copies]:
    path = copied_path(generation.folder)
    table = read_checked(storage, path, COPIED_SCHEMA)
    if pc.any(pc.less_equal(table["into_shard"], table["shard"])).as_py():
        raise damaged(storage, path, "says that rows are copied into shards before their own")
    found: dict[ShardId, Copies] = {}
    for bucket in pc.unique(table["bucket"]).to_pylist():
        part = table.filter(pc.equal(table["bucket"], bucket))
        rows = {name: _numbers(part, name) for name in COPIED_SCHEMA.names[1:]}
        order = np.lexsort((rows["row"], rows["shard"]))
        shards, firsts = np.unique(rows["shard"][order], return_index=True)
        ends = [*firsts[1:].tolist(), len(order)]
        for number, first, end in zip(shards.tolist(), firsts.tolist(), ends, strict=True):
            at = order[first:end]
            found[ShardId(bucket, number)] = Copies(
                rows=rows["row"][at],
                into_shards=rows["into_shard"][at],
                into_rows=rows["into_row"][at],
            )
    return found


def _numbers(table: pa.Table, name: str) -> Numbers:
    values: npt.NDArray[Any] = table[name].to_numpy()
    return values.astype(np.int64)


def _by_shard(table: pa.Table) -> dict[ShardId, frozenset[int]]:
    groups = table.group_by(["bucket", "shard"]).aggregate([("row", "list")]).to_pydict()
    places = zip(groups["bucket"], groups["shard"], groups["row_list"], strict=True)
    return {ShardId(bucket, shard): frozenset(rows) for bucket, shard, rows in places}


def without_rows(table: pa.Table, rows: frozenset[int] | list[int]) -> pa.Table:
    """Return a sample table without some rows, by the numbers in its column `row`."""
    if not rows:
        return table
    gone = pa.array(np.array(sorted(rows), np.int32))
    return table.filter(pc.invert(pc.is_in(table["row"], value_set=gone)))
