"""Where sources are now that have moved since their clips were planned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import NameIndex
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import read_sources
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.planning.masks import CHUNK_ROWS, chosen, mask_of
from latentcache.storage.folder import Storage
from latentcache.storage.spill import Spill

_NOTHING = pa.schema([("source", pa.string()), ("url", pa.string())]).empty_table()


class MovedUrls:
    """The last URL of each source that has moved, in Arrow: ten million in a dict take 3 GB.

    However often sources move, as signed ones do every day, each is here once, in few chunks: every shard
    of a plan is looked up, and that takes time for each chunk.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        spill = Spill()
        self._moved, self._numbers = _NOTHING, np.zeros(0, np.int32)
        self._index = NameIndex(self._moved["source"])
        for generation in reversed(manifest.generations):
            if generation.num_moved:
                said = read_sources(storage, generation)
                is_moved = mask_of(pc.equal(said["what"], "moved"))
                is_last = is_moved & (self._index.find(said["source"]) < 0)
                self._add(
                    chosen(said.select(_NOTHING.schema.names), is_last), generation.number, spill
                )

    def __len__(self) -> int:
        return len(self._numbers)

    def _add(self, moved: pa.Table, generation: int, spill: Spill) -> None:
        """Add what has moved in a generation, and not since."""
        if moved.num_rows:
            starts = range(0, moved.num_rows, CHUNK_ROWS)
            parts = [spill.put(moved.slice(n, CHUNK_ROWS).combine_chunks()) for n in starts]
            before = [self._moved] if len(self) else []
            self._moved = pa.concat_tables([*before, *parts])
            numbers = np.full(moved.num_rows, generation, np.int32)
            self._numbers = np.concatenate([self._numbers, numbers])
            self._index = NameIndex(self._moved["source"])

    def put_into(self, rows: pa.Table, generation: int) -> pa.Table:
        """Return rows of a generation's plan with the URLs that their sources have now."""
        if self._numbers.max(initial=0) <= generation:
            return rows
        at = self._index.find(rows["source"])
        at[self._numbers[at] <= generation] = -1
        if not (at >= 0).any():
            return rows
        urls = pc.coalesce(taken(self._moved["url"], at), rows["url"].combine_chunks())
        place = rows.column_names.index("url")
        return rows.set_column(place, PLAN_SCHEMA.field("url"), urls)
