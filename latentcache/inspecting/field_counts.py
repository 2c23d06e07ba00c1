"""How far a cache's fields are, from what is on storage now."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from latentcache.errors import CacheError
from latentcache.format.changes import Standing
from latentcache.format.fields.manifest import FieldManifest, field_names, read_field
from latentcache.format.fields.snapshot import (
    FieldCounts,
    build_field_index,
    count_field,
    known_field_rows,
)
from latentcache.format.manifest import Manifest
from latentcache.inspecting.behind import Behind, BehindCounter
from latentcache.storage.folder import Storage


@dataclass(frozen=True, kw_only=True)
class CountedField:
    """A field, how far it is, and how far behind the latents."""

    field: FieldManifest
    counts: FieldCounts
    behind: Behind


def behind_of(fields: Iterable[CountedField]) -> dict[str, Behind]:
    """Return how far fields are behind, by name."""
    return {found.field.name: found.behind for found in fields}


class FieldCounter:
    """Counts the fields of one cache, again and again.

    Only sample tables that their snapshots lack are read, and what `BehindCounter` reads.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._behind = storage, BehindCounter(storage)

    def count(self, manifest: Manifest, standing: Standing, index: pa.Table) -> list[CountedField]:
        """Return how far all fields are.

        standing: the rows that count once every planned shard is committed. index: the snapshot of what is
        committed of the latents.
        """
        names = field_names(self._storage)
        return [self._count(name, manifest, standing, index) for name in names]

    def behind(
        self, manifest: Manifest, standing: Standing, index: pa.Table, names: Iterable[str]
    ) -> dict[str, Behind]:
        """Return how far some fields are behind, without those of which that cannot be told."""
        found = {}
        for name in names:
            with suppress(CacheError):
                found[name] = self._count(name, manifest, standing, index).behind
        return found

    def _count(
        self, name: str, manifest: Manifest, standing: Standing, index: pa.Table
    ) -> CountedField:
        field = read_field(self._storage, name, manifest)
        known = known_field_rows(self._storage, field)
        of_field = build_field_index(self._storage, field, manifest, known)
        return CountedField(
            field=field,
            counts=count_field(field, manifest, of_field, standing),
            behind=self._behind.count(manifest, field, of_field, index),
        )
