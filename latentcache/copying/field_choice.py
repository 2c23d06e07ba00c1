"""Which fields a merged or copied cache takes from its parents: those that all have, of one recipe."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from latentcache.config.fields import stored_field
from latentcache.copying.parents import Parents
from latentcache.copying.stored_rows import OpenCache
from latentcache.errors import CacheError, ConfigError, CorruptionError
from latentcache.format.fields.manifest import FieldManifest, field_names, read_field
from latentcache.format.fields.nulls import create_nulls, has_nulls, read_nulls
from latentcache.format.manifest import CREATED_BY, Manifest, read_manifest, recipe_difference
from latentcache.planning.fields.folders import covers
from latentcache.planning.fields.planned import PlannedField, create_field
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import redact

#: Generations whose rows are those of other caches of the same recipe.
DERIVED = ("merge", "copy")


@dataclass(frozen=True, kw_only=True)
class FieldChoice:
    """taken: as they are in the new cache. left_out: names, and why."""

    taken: Sequence[FieldManifest] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def choose_fields(parents: Sequence[OpenCache]) -> FieldChoice:
    """Return the fields of caches of one recipe that their clips have in a new cache."""
    names = {name: None for parent in parents for name in field_names(parent.storage)}
    taken: list[FieldManifest] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            taken.append(_common(name, parents))
        except CacheError as error:
            left_out[name] = str(error)
    return FieldChoice(taken=taken, left_out=left_out)


def _common(name: str, parents: Sequence[OpenCache]) -> FieldManifest:
    """Return a field as the new cache has it. Raises CacheError, which says why that cannot be."""
    manifests = [read_manifest(parent.storage) for parent in parents]
    found = [_read(name, *of_parent) for of_parent in zip(parents, manifests, strict=True)]
    first, url = found[0], redact(parents[0].storage.url)
    for parent, other in zip(parents[1:], found[1:], strict=True):
        here = redact(parent.storage.url)
        if other.fingerprint != first.fingerprint:
            lines = recipe_difference(first.recipe, other.recipe) or ["their arrays differ"]
            lines = [line.replace(" in the cache, ", f" in {url}, ") for line in lines]
            lines = [line.removesuffix(" now") for line in lines]
            raise CacheError(f"{here} has it of another recipe: {'; '.join(lines)}")
        folders = [f.settings.get("folder") or "the corpus's" for f in (first, other)]
        if folders[0] != folders[1]:
            raise CacheError(
                f"its folder is {redact(folders[0])} for {url}, and {redact(folders[1])} for {here}"
            )
    choices = max(field.choices for field in found)
    # As of generation 0, a folder holds for no clip, and a run asks where relative paths start.
    is_told = all(itertools.starmap(covers, zip(found, manifests, strict=True)))
    return replace(
        first, choices=choices, generation=int(is_told), created_by=CREATED_BY, versions=()
    )


def _read(name: str, parent: OpenCache, manifest: Manifest) -> FieldManifest:
    """Read a field of a cache, which is as in `manifest` now. Raises CacheError."""
    url = redact(parent.storage.url)
    try:
        return read_field(parent.storage, name, manifest)
    except ConfigError:
        raise CacheError(f"{url} has no such field") from None
    except CorruptionError as error:
        raise CacheError(f"it is damaged in {url}: {error}") from None


def take_fields(planned: PlannedCache, parents: Parents) -> FieldChoice:
    """Create the fields that a merged or copied cache takes, unless they are there.

    Nothing, if the cache is no such one or a parent is gone. Raises StorageError, CorruptionError.
    """
    first = planned.manifest.generations[0]
    if first.kind not in DERIVED:
        return FieldChoice()
    try:
        opened = [parents.open(parent) for parent in first.parents]
    except CacheError:
        return FieldChoice()
    choice = choose_fields(opened)
    left_out = dict(choice.left_out)
    for wanted in choice.taken:
        try:
            _create(planned, wanted, opened)
        except CorruptionError:
            raise  # of what was written just now: a reader is not to miss the field for that
        except (CacheError, ConfigError) as error:
            left_out[wanted.name] = str(error)
    return replace(choice, left_out=left_out)


def _create(planned: PlannedCache, wanted: FieldManifest, opened: Sequence[OpenCache]) -> None:
    config = stored_field(wanted.name, dict(wanted.settings))
    there = create_field(PlannedField(cache=planned, field=wanted, config=config)).field
    if there.choices < wanted.choices:
        raise CacheError(
            f"the field that is there has {there.choices} texts per clip, and {wanted.choices} are needed"
        )
    if wanted.kind != "text" or has_nulls(planned.storage, there):
        return
    for parent in opened:
        try:
            nulls = read_nulls(
                parent.storage, _read(wanted.name, parent, read_manifest(parent.storage))
            )
        except CorruptionError as error:
            raise CacheError(f"it is damaged in {redact(parent.storage.url)}: {error}") from None
        if nulls:
            create_nulls(planned.storage, there, list(nulls.values()))
            return
