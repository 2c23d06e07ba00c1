"""Where a field's files are: those of its encoder, and where relative paths in its columns start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentcache.config.caption_fields import JointField, TextField
from latentcache.config.fields import AudioField, FieldConfig, VisualField, path_columns
from latentcache.errors import ConfigError
from latentcache.format.fields.manifest import FieldManifest, read_field
from latentcache.format.fields.paths import field_json_path
from latentcache.format.manifest import Manifest
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import redact
from latentcache.storage.urls import folder_of, is_url

#: Settings of this package's own encoders that name files. Those of plug-ins may all do.
PLACES = ("model", "folders")


def with_folder(
    cache: PlannedCache, name: str, config: FieldConfig, corpus: str | None
) -> FieldConfig:
    """Return settings that say where relative paths start. corpus: where it is now; None: not known.

    Raises ConfigError where nothing says it.
    """
    if not path_columns(config):
        return config
    folder = config_folder(config)
    if folder is None and corpus is None:
        folder = _known_folder(cache, name)
    if folder is None:
        folder = folder_of(corpus or cache.config.corpus.source)
    place = folder if is_url(folder) else str(Path(folder).expanduser().absolute())
    return config.model_copy(update={"folder": place})


def config_folder(config: FieldConfig) -> str | None:
    """Return the `folder` of settings that have columns of paths."""
    folder: str | None = getattr(config, "folder", None)
    return folder


def is_relative(path: str) -> bool:
    """Tell whether a path in a field's column starts at its folder; an empty one is none."""
    return bool(path) and not (is_url(path) or path.startswith("/"))


def moved_since(field: FieldManifest, manifest: Manifest) -> bool:
    """Tell whether sources have moved since it was last said where relative paths of a field start."""
    said = max(v.generation for v in field.all_versions if v.number == 1 or v.folder is not None)
    return any(generation.num_moved for generation in manifest.generations[said:])


def found_from_anywhere(config: FieldConfig) -> dict[str, Any]:
    """Return settings whose encoder's files have absolute paths: `resume` may run in another folder."""
    settings = config.model_dump(mode="json")
    if isinstance(config, TextField | JointField):
        is_own = "." not in config.family and ":" not in config.family
        names = PLACES if is_own else tuple(config.model_extra or ())
        return settings | _absolute_in(settings, names)
    has_model = isinstance(config, VisualField) and config.tower is not None
    if has_model or (isinstance(config, AudioField) and config.encoder is not None):
        encoder = settings["encoder"]
        return {**settings, "encoder": encoder | _absolute_in(encoder, PLACES)}
    return settings


def _absolute_in(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: _absolute(settings[name]) for name in names if name in settings}


def _absolute(value: Any) -> Any:
    """Return the place of a file or folder that is here; any other value as it is."""
    if isinstance(value, Mapping):
        return {key: _absolute(inner) for key, inner in value.items()}
    is_here = isinstance(value, str) and value and Path(value).expanduser().exists()
    return str(Path(value).expanduser().absolute()) if is_here else value


def _known_folder(cache: PlannedCache, name: str) -> str | None:
    """Return where a field that is there says that they start; None: at the corpus, which has not moved."""
    if cache.storage.exists(field_json_path(name)):
        return str(read_field(cache.storage, name, cache.manifest).settings["folder"])
    if any(generation.num_moved for generation in cache.manifest.generations):
        raise ConfigError(
            f"fields.{name}.folder: the corpus has moved since the cache was made, so say where relative "
            "paths in the field's columns start now. Or add the field to CONFIG.yaml and run precompute, "
            f"which knows where the corpus is. It was in {redact(folder_of(cache.config.corpus.source))}"
        )
    return None
