"""The sources that a cache knows, by name: in Arrow, for ten million Python objects take 8 GB."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import NameIndex, Rows
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import STAYS, read_sources
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning.masks import chosen, looked_up, mask_of, no_names, pieces
from latentcache.storage.folder import Storage
from latentcache.storage.spill import Spill

#: Columns of what is known, beside the name.
_FACTS = ("url", "kind", "identity", "stamp")
#: Rows that become Python objects together.
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """A source as a cache knows it. stamp: see `corpus.stamps`; is_rejected: it gives no clip.

    is_partial: it was copied from a cache where some of its clips were still to be encoded.
    """

    url: str
    kind: str
    identity: str | None
    stamp: str | None
    is_rejected: bool
    is_partial: bool = False


class KnownSources(Mapping[str, KnownSource]):
    """Sources by name. table: PLANNED_SOURCE_SCHEMA, a row per source, planned, partial or rejected."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[str]:
        for batch in self.table.select(["source"]).to_batches(max_chunksize=CHUNK_ROWS):
            yield from batch["source"].to_pylist()

    def __getitem__(self, name: str) -> KnownSource:
        """Return one source. The first call makes an index in Python; `places` looks up many in Arrow."""
        return self.at(self._rows[name])

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self)}

    def at(self, row: int) -> KnownSource:
        """Return the source of a row of the table."""
        facts = {name: self.table[name][row].as_py() for name in _FACTS}
        what = self.table["what"][row].as_py()
        return KnownSource(**facts, is_rejected=what == "rejected", is_partial=what == "partial")

    def find(self, names: pa.ChunkedArray) -> Rows:
        """Return the rows of some names, -1 for those that are not known."""
        return self._index.find(names)

    @functools.cached_property
    def _index(self) -> NameIndex:
        return NameIndex(self.table["source"])

    def without(self, rows: Rows) -> pa.ChunkedArray:
        """Return the names of the sources that are not in these rows, sorted."""
        others = np.ones(len(self), bool)
        others[rows[rows >= 0]] = False
        names = chosen(self.table["source"], others)
        return looked_up(names, pc.sort_indices(names).to_numpy())


def read_known(storage: Storage, manifest: Manifest) -> KnownSources:
    """Return what the generations of a cache, one after the other, say of sources."""
    known = PLANNED_SOURCE_SCHEMA.empty_table()
    for generation in manifest.generations:
        if generation.num_sources:
            said = read_sources(storage, generation).select(PLANNED_SOURCE_SCHEMA.names)
            known = changed(known, said.cast(PLANNED_SOURCE_SCHEMA))
    return KnownSources(known)


def changed(known: pa.Table, said: pa.Table) -> pa.Table:
    """Return what is known after a generation has said something of sources; both PLANNED_SOURCE_SCHEMA.

    A source that is gone is known no more. One that has moved or was touched has another URL or stamp.
    """
    # The first plan says all, and there is nothing to look up.
    in_said = NameIndex(said["source"] if known.num_rows else no_names()).find(known["source"])
    at = np.full(said.num_rows, -1)
    at[in_said[in_said >= 0]] = np.flatnonzero(in_said >= 0)
    is_moved = mask_of(pc.is_in(said["what"], value_set=STAYS))
    is_gone = mask_of(pc.equal(said["what"], "gone"))
    spill = Spill()
    moved = chosen(said.select(["source", "url", "stamp"]), is_moved & (at >= 0), spill.put)
    rows = at[is_moved & (at >= 0)]
    for name in ("kind", "identity", "what"):
        parts = (taken(known[name], some) for some in pieces(rows))
        moved = moved.append_column(known.schema.field(name), spill.joined(parts, pa.string()))
    fresh = chosen(said, ~(is_moved | is_gone), spill.put)
    untouched = chosen(known, in_said < 0, spill.put)
    return pa.concat_tables([untouched, moved.select(PLANNED_SOURCE_SCHEMA.names), fresh])
