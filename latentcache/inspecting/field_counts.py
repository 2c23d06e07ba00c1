"""How far a cache's fields are, from what is on storage now."""

from __future__ import annotations

from dataclasses import dataclass

from latentcache.format.changes import Standing
from latentcache.format.fields.manifest import FieldManifest, field_names, read_field
from latentcache.format.fields.snapshot import (
    FieldCounts,
    build_field_index,
    count_field,
    known_field_rows,
)
from latentcache.format.manifest import Manifest
from latentcache.storage.folder import Storage


@dataclass(frozen=True, kw_only=True)
class CountedField:
    """A field, and how far it is."""

    field: FieldManifest
    counts: FieldCounts


def count_fields(storage: Storage, manifest: Manifest, standing: Standing) -> list[CountedField]:
    """Return how far each field is, by name; only sample tables that its snapshot lacks are read.

    standing: the rows that count once every planned shard is committed.
    """
    found = []
    for name in field_names(storage):
        field = read_field(storage, name, manifest)
        known = known_field_rows(storage, field)
        index = build_field_index(storage, field, manifest, known)
        counts = count_field(field, manifest, index, standing)
        found.append(CountedField(field=field, counts=counts))
    return found
