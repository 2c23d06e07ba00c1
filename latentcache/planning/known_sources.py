"""The sources that a cache knows, by name: in Arrow, for ten million Python objects take 8 GB."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import STAYS, read_sources
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning.masks import chosen, mask_of
from latentcache.storage.folder import Storage

#: Columns of what is known, beside the name.
_FACTS = ("url", "kind", "identity", "stamp")
#: Rows that become Python objects together.
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """A source as a cache knows it. stamp: see `corpus.stamps`; is_rejected: it gives no clip."""

    url: str
    kind: str
    identity: str | None
    stamp: str | None
    is_rejected: bool


class KnownSources(Mapping[str, KnownSource]):
    """Sources by name. table: PLANNED_SOURCE_SCHEMA, a row per source, planned or rejected."""

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
        return KnownSource(**facts, is_rejected=self.table["what"][row].as_py() == "rejected")

    def places(self, names: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the rows of some names, int32; null for those that are not known."""
        return pc.index_in(names, value_set=self.table["source"])

    def without(self, names: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the names of the sources that are not among these, sorted."""
        others = pc.invert(pc.is_in(self.table["source"], value_set=names))
        return self.table["source"].filter(others).sort()


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
    at = pc.index_in(said["source"], value_set=known["source"])
    is_moved = pc.is_in(said["what"], value_set=STAYS)
    is_gone = pc.equal(said["what"], "gone")
    before = known.take(at.filter(is_moved).drop_null())
    moved = said.filter(pc.and_(is_moved, pc.is_valid(at))).select(["source", "url", "stamp"])
    for name in ("kind", "identity", "what"):
        moved = moved.append_column(known.schema.field(name), before[name])
    fresh = chosen(said, ~mask_of(pc.or_(is_moved, is_gone)))
    untouched = chosen(known, ~mask_of(pc.is_in(known["source"], value_set=said["source"])))
    return pa.concat_tables([untouched, moved.select(PLANNED_SOURCE_SCHEMA.names), fresh])
