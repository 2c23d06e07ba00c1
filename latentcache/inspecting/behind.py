"""How many ok clips have no value of a field, or one of former captions or files: what a run is to make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latentcache.core.fields import FieldKind
from latentcache.core.records import ShardId
from latentcache.errors import CorruptionError
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.snapshot import newest_versions, part_of, rows_of
from latentcache.format.manifest import Manifest
from latentcache.format.samples import read_samples
from latentcache.format.snapshot import shard_of
from latentcache.reading.column_history import ColumnHistory
from latentcache.reading.stale import StaleRows
from latentcache.storage.folder import Storage

NUM_THREADS = 16

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Behind:
    """How far a field is behind its cache, in ok clips.

    num_missing: without a value; failed ones count only if their captions have changed since, or if they
    wait to be made again. num_former: with a value of former captions or files.
    """

    kind: FieldKind
    num_missing: int = 0
    num_former: int = 0

    def __bool__(self) -> bool:
        return bool(self.num_missing or self.num_former)


class BehindCounter:
    """Counts that for fields of one cache, again and again: what it has found of a shard it keeps.

    Reads tables only of shards whose columns have changed since their values were made, or whose values
    wait to be made again, and of those of which a field has only later versions. Of a shard whose tables
    are damaged nothing is counted.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._history: ColumnHistory | None = None
        self._known: dict[tuple[object, ...], int] = {}

    def count(
        self, manifest: Manifest, field: FieldManifest, of_field: pa.Table, index: pa.Table
    ) -> Behind:
        """Return how far a field is behind. of_field: what is committed of it; index: of the latents."""
        if field.kind == "view":
            return Behind(kind=field.kind)
        shards = _Shards(self._storage, field, of_field, self._history_of(manifest))
        places = (index[name].to_pylist() for name in ("bucket", "shard"))
        there = [ShardId(*place) for place in zip(*places, strict=True)]
        missing = _taken(index, map(shards.maybe_missing, there))
        former = _taken(index, (shard in shards.maybe_former for shard in there))
        return Behind(
            kind=field.kind,
            num_missing=self._sum(shards, missing, shards.num_missing),
            num_former=self._sum(shards, former, shards.num_former),
        )

    def _history_of(self, manifest: Manifest) -> ColumnHistory:
        if self._history is None or self._history.now != len(manifest.generations):
            self._history = ColumnHistory(self._storage, manifest)
            self._known.clear()
        return self._history

    def _sum(self, shards: _Shards, rows: Sequence[Row], count: Callable[[Row], int]) -> int:
        def look(row: Row) -> int:
            key = (count.__name__, *shards.key(row))
            if key not in self._known:
                try:
                    self._known[key] = count(row)
                except CorruptionError:
                    return 0  # `verify` names the damaged table
            return self._known[key]

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return sum(pool.map(look, rows))


def _taken(index: pa.Table, wanted: Iterable[bool]) -> list[Row]:
    """Return some rows of a snapshot."""
    return index.filter(pa.array(wanted, pa.bool_())).to_pylist()  # type: ignore[no-any-return]


class _Shards:
    """The shards of a field, beside rows of the snapshot of latents."""

    def __init__(
        self, storage: Storage, field: FieldManifest, of_field: pa.Table, history: ColumnHistory
    ) -> None:
        self._storage, self._field, self._manifest = storage, field, history.manifest
        self._newest = newest_versions(field, of_field)
        self._stale = StaleRows(field, self._newest, history)
        #: The shards that may have values of former captions or files.
        self.maybe_former = self._stale.shards

    def key(self, row: Row) -> tuple[object, ...]:
        """Return what its numbers follow from, as long as the cache does not grow."""
        field, versions = self._field, self._newest.get(shard_of(row), ())
        planned = field.fingerprint, field.generation, len(field.versions)
        there = tuple(version["version"] for version in versions)
        return (
            field.name,
            *planned,
            there,
            shard_of(row),
            row["num_ok"],
            tuple(row["retired"] or ()),
        )

    def maybe_missing(self, shard: ShardId) -> bool:
        """Whether its first version, which has all rows, is not there, or failed rows may be owed."""
        versions = self._newest.get(shard, ())
        return shard in self._stale.maybe_owed or all(v["version"] != 1 for v in versions)

    def num_missing(self, row: Row) -> int:
        """Count the ok clips that no committed version has, and the failed ones that are owed."""
        shard = shard_of(row)
        if not (versions := self._newest.get(shard)):
            return int(row["num_ok"])
        there = set[int]()
        for version in versions:
            there.update(rows_of(self._field, self._manifest, part_of(version)))
        there -= self._stale.owed(shard)
        return len(self._ok(row) - there) if len(there) < self._manifest.num_rows(shard) else 0

    def num_former(self, row: Row) -> int:
        """Count the ok clips with values of former captions or files."""
        rows = self._stale.of(shard_of(row))
        return len(self._ok(row) & rows) if rows else 0

    def _ok(self, row: Row) -> set[int]:
        """Return the ok rows of a shard that count; its table is read only if some clip failed."""
        if row["num_ok"] == row["num_clips"]:
            rows = range(self._manifest.num_rows(shard_of(row)))
            return set(rows).difference(row["retired"] or ())
        where = self._storage, self._manifest.fingerprint
        table = read_samples(*where, {**row, "columns": None}, ["row", "status"])
        statuses = zip(table["row"].to_pylist(), table["status"].to_pylist(), strict=True)
        return {number for number, status in statuses if status == "ok"}
