"""Which values of a field are of other texts, or of other paths, than those that its clips have now."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentcache.config.fields import stored_field
from latentcache.core.records import ShardId
from latentcache.format.fields.manifest import FieldManifest, Version
from latentcache.format.fields.snapshot import Row
from latentcache.format.fields.taken import Taken, Texts
from latentcache.reading.column_history import ColumnHistory

#: What is said of such clips.
CHANGED_SINCE = "captions changed since; `resume` or `add-field --update`"

#: The stale rows of shards, in order.
Found = dict[ShardId, npt.NDArray[np.int32]]


class FieldTexts:
    """What a field takes of its clips' columns, as its runs do: of too many texts the first ones."""

    def __init__(self, field: FieldManifest) -> None:
        self._taken = Taken(stored_field(field.name, dict(field.settings)))
        self.columns, self._most = self._taken.columns, self._taken.num_paths + field.choices

    def of(self, table: pa.Table) -> dict[int, Texts]:
        """Return what it takes of each row. table: `row` and the columns; one that is not there is null."""
        nulls = [None] * table.num_rows
        columns = [
            table[name].to_pylist() if name in table.column_names else nulls
            for name in self.columns
        ]
        taken = (
            self._taken.of([_as_list(value) for value in values])[: self._most]
            for values in zip(*columns, strict=True)
        )
        return dict(zip(table["row"].to_pylist(), taken, strict=True))


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


class StaleRows:
    """The rows of a field whose values are of former texts. Safe for threads.

    newest: what is committed of each shard, the newest version first. found: what is known of shards.
    Reads tables only of shards whose columns have changed since their values were made, or whose values
    wait to be made again.
    """

    def __init__(
        self,
        field: FieldManifest,
        newest: Mapping[ShardId, Sequence[Row]],
        history: ColumnHistory,
        found: Found | None = None,
    ) -> None:
        self._field, self._newest, self._history = field, newest, history
        self.found: Found = {} if found is None else found

    @functools.cached_property
    def _texts(self) -> FieldTexts:
        return FieldTexts(self._field)

    @functools.cached_property
    def _waiting(self) -> dict[ShardId, list[Version]]:
        """The versions of each shard that are planned, and not committed."""
        found: dict[ShardId, list[Version]] = {}
        for version in self._field.versions:
            if version.generation > self._history.now:
                continue
            for shard in version.rows or ():
                there = self._newest.get(shard, ())
                if there and all(row["version"] != version.number for row in there):
                    found.setdefault(shard, []).append(version)
        return found

    @functools.cached_property
    def shards(self) -> frozenset[ShardId]:
        """The shards that may have such rows; no others have any."""
        return self.maybe_owed if self._field.has_columns else frozenset()

    @functools.cached_property
    def maybe_owed(self) -> frozenset[ShardId]:
        """The shards that may have rows as `owed` returns them; no others have any."""
        changed = (
            shard
            for shard, last in (self._history.changed if self._field.has_columns else {}).items()
            if any(self._pin(row) < last for row in self._newest.get(shard, ()))
        )
        return frozenset([*changed, *self._waiting])

    def _pin(self, row: Row) -> int:
        version = self._field.all_versions[row["version"] - 1]
        return self._history.pinned(version, ShardId(row["bucket"], row["shard"]))

    def of(self, shard: ShardId) -> frozenset[int]:
        """Return such rows of a shard, which must be committed. Raises CorruptionError."""
        if shard not in self.shards:
            return frozenset()
        if shard not in self.found:
            self.found[shard] = np.array(sorted(self._find(shard)), np.int32)
        return frozenset(self.found[shard].tolist())

    def owed(self, shard: ShardId) -> set[int]:
        """Return the failed rows of a shard whose texts have changed since, or that wait to be made again.

        The shard must be committed. Raises CorruptionError.
        """
        found = set[int]()
        for version, _, failed in self._versions(shard) if shard in self.maybe_owed else ():
            if self._field.has_columns:
                pin = self._history.pinned(version, shard)
                found |= self._differ(shard, pin, self._history.now, failed)
            for later in self._waiting.get(shard, ()):
                if later.number > version.number:
                    found |= failed & (later.rows or {})[shard]
        return found

    def _find(self, shard: ShardId) -> set[int]:
        stale = (self._stale(shard, version, ok) for version, ok, _ in self._versions(shard))
        return set[int]().union(*stale)

    def _versions(self, shard: ShardId) -> Iterator[tuple[Version, set[int], set[int]]]:
        """Yield what is committed of a shard, and its ok and failed rows of which nothing newer is."""
        left = set(range(self._history.num_rows(shard)))
        for row in self._newest[shard]:
            version = self._field.all_versions[row["version"] - 1]
            own = left if version.rows is None else left & version.rows[shard]
            left = left - own
            yield version, own.difference(row["failed"]), own.intersection(row["failed"])

    def _stale(self, shard: ShardId, version: Version, rows: set[int]) -> set[int]:
        """Return which rows are stale of those of which a version has the newest value."""
        pin = self._history.pinned(version, shard)
        found, before = self._differ(shard, pin, self._history.now, rows), [version]
        for later in self._waiting.get(shard, ()):
            if later.number > version.number:
                if later.kind == "update":
                    found |= self._copied(shard, before, later, rows)
                before.append(later)
        return found

    def _copied(
        self, shard: ShardId, before: Sequence[Version], later: Version, rows: set[int]
    ) -> set[int]:
        """Return which rows an update lists though their texts are those of every version before it.

        These are copies of former values: all others are listed because their texts had changed.
        """
        found = rows & (later.rows or {})[shard]
        pin = self._history.pinned(later, shard)
        for version in before:
            own = found if version.rows is None else found & version.rows[shard]
            found = found - self._differ(shard, self._history.pinned(version, shard), pin, own)
        return found

    def _differ(self, shard: ShardId, one: int, other: int, rows: Set[int]) -> set[int]:
        """Return the rows whose texts differ between two generations."""
        folders = [self._history.folder(shard, generation) for generation in (one, other)]
        if not rows or folders[0] == folders[1]:
            return set()
        tables = [self._history.table(shard, f, self._texts.columns) for f in folders]
        if tables[0].equals(tables[1]):
            return set()
        before, now = map(self._texts.of, tables)
        return {row for row in rows if before.get(row) != now.get(row)}
