"""The texts and paths of a cache's clips, as they stand in a generation: a version says which."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from latentcache.config.fields import FieldConfig
from latentcache.core.columns import is_list
from latentcache.core.records import ShardId
from latentcache.errors import ConfigError, did_you_mean
from latentcache.format.columns import read_columns, with_columns
from latentcache.format.fields.manifest import Version
from latentcache.format.fields.taken import Taken, Texts
from latentcache.format.kept_schema import kept_schema, united
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.planning.planned import PlannedCache
from latentcache.reading.column_history import ColumnHistory

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)


class TextInputs:
    """Reads texts and paths from plans and changed columns. Not for several threads."""

    def __init__(self, planned: PlannedCache, config: FieldConfig) -> None:
        self._planned, self._taken = planned, Taken(config)
        self.num_paths = self._taken.num_paths
        self._kept = united(kept_schema(step.kept) for step in planned.manifest.generations)
        self._history = ColumnHistory(planned.storage, planned.manifest)

    def folder(self, shard: ShardId, generation: int) -> str | None:
        """Return the generation's folder that changed a shard's columns last; None: as it was planned."""
        return self._history.folder(shard, generation)

    def pinned(self, version: Version, shard: ShardId) -> int:
        """Return the generation as of which a version reads a shard: of later shards, their own."""
        return self._history.pinned(version, shard)

    def of(self, shard: ShardId, generation: int) -> list[Texts]:
        """Return the texts of each row of a shard, as of a generation. Raises ConfigError.

        A kept column that the corpus lacked when a shard was planned is null there.
        """
        table = self._planned.plan.table(shard)
        folder = self.folder(shard, generation)
        if folder is not None:
            table = with_columns(table, read_columns(self._planned.storage, folder, shard))
        return texts_in(table, self._taken, self._kept)


def texts_in(table: pa.Table, taken: Taken, kept: pa.Schema) -> list[Texts]:
    """Return what a field takes of each row of a plan's table. Raises ConfigError.

    kept: columns that the table may lack; they are null there.
    """
    values = [_as_lists(table, name, kept) for name in taken.columns]
    return [taken.of(row) for row in zip(*values, strict=True)]


def _as_lists(table: pa.Table, name: str, kept: pa.Schema) -> list[list[str | None]]:
    """Return a list of texts per row. kept: the columns that any step of the cache has kept."""
    if name in table.column_names:
        kind, values = table.schema.field(name).type, table[name].to_pylist()
    elif name in kept.names:
        kind, values = kept.field(name).type, [None] * table.num_rows
    else:
        raise _no_column(name, [*table.column_names, *kept.names])
    if any(is_text(kind) for is_text in _TEXTS):
        return [[value] for value in values]
    if is_list(kind) and any(t(kind.value_type) for t in _TEXTS):
        return [value or [] for value in values]
    raise ConfigError(f"column {name!r} is {kind}, and a text field reads texts, or lists of them")


def _no_column(name: str, columns: Sequence[str]) -> ConfigError:
    fixed = {*PLAN_SCHEMA.names} - {"caption"}
    known = [column for column in dict.fromkeys(columns) if column not in fixed]
    return ConfigError(
        f"column {name!r}: the clips have no such column.{did_you_mean(name, known)} They have: "
        f"{', '.join(known)}. Columns of the corpus are kept where corpus.keep names them."
    )
