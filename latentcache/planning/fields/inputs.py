"""The texts and paths of a cache's clips, as they stand in a generation: a version says which."""

from __future__ import annotations

from latentcache.config.fields import FieldConfig, path_columns
from latentcache.core.records import ShardId
from latentcache.format.columns import read_columns, with_columns
from latentcache.format.fields.manifest import Version
from latentcache.format.fields.taken import Texts
from latentcache.planning.fields.columns import columns_of, taken_of
from latentcache.planning.planned import PlannedCache
from latentcache.reading.column_history import ColumnHistory


class TextInputs:
    """Reads texts and paths from plans and changed columns. Not for several threads."""

    def __init__(self, planned: PlannedCache, config: FieldConfig) -> None:
        self._planned, self._config = planned, config
        self.num_paths = len(path_columns(config))
        self._known = columns_of(planned.manifest)
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
        return list(taken_of(self._config, table, self._known))
