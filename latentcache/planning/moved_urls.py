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
from latentcache.storage.folder import Storage

_NOTHING = pa.schema([("source", pa.string()), ("url", pa.string())]).empty_table()


class MovedUrls:
    """The URLs of sources that have moved, in Arrow: ten million in a dict take 3 GB."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        moves, numbers = [], [np.zeros(0, np.int64)]
        for generation in reversed(
            manifest.generations
        ):  # the index finds the first of equal names
            if generation.num_moved:
                said = read_sources(storage, generation)
                moved = said.filter(pc.equal(said["what"], "moved")).select(["source", "url"])
                moves.append(moved)
                numbers.append(np.full(moved.num_rows, generation.number))
        self._numbers = np.concatenate(numbers)
        self._moved = pa.concat_tables(moves or [_NOTHING])
        self._index = NameIndex(self._moved["source"])

    def put_into(self, rows: pa.Table, generation: int) -> pa.Table:
        """Return rows of a generation's plan with the URLs that their sources have now."""
        if not self._moved.num_rows:
            return rows
        at = self._index.find(rows["source"])
        at[self._numbers[at] <= generation] = -1
        if not (at >= 0).any():
            return rows
        urls = pc.coalesce(taken(self._moved["url"], at), rows["url"].combine_chunks())
        place = rows.column_names.index("url")
        return rows.set_column(place, PLAN_SCHEMA.field("url"), urls)
