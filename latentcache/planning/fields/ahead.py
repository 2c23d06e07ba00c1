"""Whether it will be known after a step where relative paths of fields start: before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from latentcache.config.fields import FieldConfig, path_columns
from latentcache.format.fields.manifest import Version, read_field
from latentcache.format.fields.paths import field_json_path
from latentcache.planning.corpora import generations_of_corpora
from latentcache.planning.fields.places import config_folder
from latentcache.planning.fields.planned import PlannedField, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step, to_generation
from latentcache.storage.overlay import Overlay


def fields_in_doubt(
    cache: PlannedCache, step: Step, fields: Mapping[str, FieldConfig]
) -> dict[str, FieldConfig]:
    """Return the fields that read paths of a cache whose corpora have no one folder after a step."""
    before = generations_of_corpora(cache.manifest)
    folders = {step.corpus, *(each.corpus for each in before)}
    if not before or (len(folders) == 1 and "" not in folders):
        return {}
    return {n: c for n, c in fields.items() if path_columns(c) and not config_folder(c)}


def as_after(cache: PlannedCache, step: Step) -> PlannedCache:
    """Return a cache as it will be after a step, to be read; nothing is written."""
    if not step:
        return cache
    generation, tables = to_generation(cache.manifest, step)
    manifest = replace(cache.manifest, generations=(*cache.manifest.generations, generation))
    return replace(cache, manifest=manifest, storage=Overlay(cache.storage, tables))


def check_paths(after: PlannedCache, name: str, config: FieldConfig) -> None:
    """Raise ConfigError where nothing says where paths start that `precompute` is to read for a field.

    after: see `as_after`.
    """
    planned = plan_field(after, name, config, after.config.corpus.source)
    if after.storage.exists(field_json_path(name)):  # else `plan_field` has looked
        _as_told(planned).check_folders()


def _as_told(planned: PlannedField) -> PlannedField:
    """Return a field that is there as it will be when it was told where relative paths start."""
    field = read_field(planned.storage, planned.field.name, planned.cache.manifest)
    found = replace(planned, field=field)
    if not found.is_moved:
        return found
    move = Version(
        number=len(field.versions) + 2,
        kind="move",
        generation=len(planned.cache.manifest.generations),
        rows={},
        folder=config_folder(planned.config) or "",
    )
    return replace(found, field=replace(field, versions=(*field.versions, move)))
