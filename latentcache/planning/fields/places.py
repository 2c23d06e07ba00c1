"""Where a field's files are: those of its encoder, and folders of settings and corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentcache.config.caption_fields import JointField, TextField
from latentcache.config.fields import AudioField, FieldConfig, VisualField, path_columns
from latentcache.corpus.source_table import resolve
from latentcache.format.fields.manifest import read_field
from latentcache.format.fields.paths import field_json_path
from latentcache.planning.planned import PlannedCache
from latentcache.storage.urls import is_url

#: Settings of this package's own encoders that name files. Those of plug-ins may all do.
PLACES = ("model", "folders")


def with_folder(
    cache: PlannedCache, name: str, config: FieldConfig, corpus: str | None
) -> FieldConfig:
    """Return settings whose `folder` is absolute. corpus: where it is now; None: not known.

    Where that is not known, a field that is there keeps the folder that it was told.
    """
    if not path_columns(config):
        return config
    folder = config_folder(config)
    if folder is None and corpus is None and cache.storage.exists(field_json_path(name)):
        folder = read_field(cache.storage, name, cache.manifest).settings.get("folder")
    return config.model_copy(update={"folder": folder and _absolute_folder(folder)})


def config_folder(config: FieldConfig) -> str | None:
    """Return the `folder` of settings that have columns of paths."""
    folder: str | None = getattr(config, "folder", None)
    return folder


def is_relative(path: str) -> bool:
    """Tell whether a path in a field's column starts at a folder; an empty one is none."""
    return bool(path) and not (is_url(path) or path.startswith("/"))


def url_of(path: str, folder: str) -> str:
    """Return where a path in a field's column is; relative ones start at the folder."""
    if not is_relative(path):
        return path
    if is_url(folder):
        return resolve(folder if folder.endswith("/") else f"{folder}/", path)
    return str(Path(folder) / path)


def _absolute_folder(folder: str) -> str:
    return folder if is_url(folder) else str(Path(folder).expanduser().absolute())


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
