"""What jobs say of fields that they have left behind their cache."""

from __future__ import annotations

from collections.abc import Collection

from latentcache.format.fields.manifest import field_names
from latentcache.format.snapshot import current_index
from latentcache.inspecting.field_counts import FieldCounter
from latentcache.inspecting.status_words import behind_lines
from latentcache.planning.planned import PlannedCache
from latentcache.redaction import redact


def say_behind(cache: PlannedCache, made: Collection[str]) -> None:
    """Say which other fields lack values, or have some of former captions or files.

    made: those of which the run has said how far they are. A damaged one is left to `verify`.
    """
    storage, manifest = cache.storage, cache.manifest
    names = [name for name in field_names(storage) if name not in made]
    if names:
        index = current_index(storage, manifest)
        behind = FieldCounter(storage).behind(manifest, cache.plan.standing, index, names)
        for line in behind_lines(behind, redact(storage.url)):
            print(f"behind   {line}")
