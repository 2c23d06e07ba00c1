"""What generations say of sources: which were planned, whole or in part, rejected, moved, or are gone."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.format.generations import Generation
from latentcache.format.manifest import Manifest
from latentcache.format.paths import rejected_path, sources_path
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA, SAMPLE_SCHEMA
from latentcache.format.tables import read_checked
from latentcache.storage.folder import Storage

#: What is said of sources whose clips stay: they are at another URL, or have another stamp.
STAYS = pa.array(["moved", "touched"], pa.string())


def read_sources(storage: Storage, generation: Generation) -> pa.Table:
    """Read what a generation says of sources: PLANNED_SOURCE_SCHEMA. Raises CorruptionError."""
    return read_checked(storage, sources_path(generation.folder), PLANNED_SOURCE_SCHEMA)


def read_rejected(storage: Storage, manifest: Manifest) -> pa.Table:
    """Return the sources that give no clip, as rows of the cache's table, each as it was found last.

    A source that a later generation plans, or says is gone, is none of them. Raises CorruptionError.
    """
    tables: list[pa.Table] = []
    seen: set[str] = set()
    generations = manifest.generations
    first = next((n for n, each in enumerate(generations) if each.num_rejected), len(generations))
    for generation in reversed(generations[first:]):
        if not generation.num_sources:
            continue
        if generation.num_rejected:
            table = read_checked(storage, rejected_path(generation.folder), SAMPLE_SCHEMA)
            fresh = [name not in seen for name in table["source"].to_pylist()]
            tables.append(table.filter(pa.array(fresh, pa.bool_())))
        if generation is generations[first]:
            break  # of the sources that it plans nobody asks
        sources = read_sources(storage, generation)
        others = pc.invert(pc.is_in(sources["what"], value_set=STAYS))
        seen.update(sources.filter(others)["source"].to_pylist())
    tables.reverse()
    return pa.concat_tables(tables, promote_options="default") if tables else _NO_ROWS


_NO_ROWS = SAMPLE_SCHEMA.empty_table()
