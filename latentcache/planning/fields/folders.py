"""Where the relative paths of each clip start: at the corpus that its source came from, or at `folder`.

A source came from the corpus of the last generation that planned or moved it, or changed its texts. A
`folder` that was told holds for all that had come by then.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentcache.core.names import NameIndex
from latentcache.core.records import ShardId
from latentcache.errors import ConfigError
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.paths import field_json_path
from latentcache.format.generations import Generation
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import read_sources
from latentcache.planning.corpora import generations_of_corpora, may_have_moved
from latentcache.planning.fields.inputs import TextInputs
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage, redact
from latentcache.storage.parts import file_of
from latentcache.storage.urls import without_file_scheme


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a field was told. folder: of all that came up to a generation; None: none was told.

    then_corpora: whether what came later starts at its corpus, as it does where no folder was told.
    """

    folder: str | None
    generation: int
    then_corpora: bool


def told(field: FieldManifest) -> Told:
    """Return what a field was told of where its relative paths start."""
    folder, generation, then_corpora = field.settings.get("folder"), field.generation, False
    for version in field.versions:
        if version.folder:
            generation, then_corpora = version.generation, False
        elif version.folder is not None:
            then_corpora = True
    return Told(folder=folder, generation=generation, then_corpora=then_corpora or folder is None)


def covers(field: FieldManifest, manifest: Manifest) -> bool:
    """Tell whether nothing has come to a cache since the field was told a folder, if it was."""
    last = generations_of_corpora(manifest)[-1].number
    return told(field).folder is None or last <= told(field).generation


def corpora_of(cache: PlannedCache) -> dict[int, str | None]:
    """Return where the corpus was that each generation was planned from; None: not known."""
    return {each.number: each.corpus or None for each in generations_of_corpora(cache.manifest)}


def only_corpus(caches: Iterable[PlannedCache]) -> str:
    """Return where the corpus of some caches was; empty where that is not one place, or not known."""
    folders = {folder for cache in caches for folder in corpora_of(cache).values()}
    return (folders.pop() or "") if len(folders) == 1 else ""


def unknown_folder(field: FieldManifest, storage: Storage) -> ConfigError:
    """Return what to raise where nothing says where paths that are to be read start."""
    setting, folder = f"fields.{field.name}.folder", told(field).folder
    why = "their corpus may have moved or is in several folders, or the cache is of several corpora"
    if folder is not None:
        why = f"they came after the field was told that paths start at {redact(folder)}"
    say = "name it in the field's settings, as folder: PLACE, and run this again."
    if storage.exists(field_json_path(field.name)):
        say = f"say it:  latentcache resume {redact(storage.url)} {setting}=PLACE "
    return ConfigError(
        f"{setting}: clips that the field lacks have relative paths, and nothing says where these start: "
        f"{why}. Nothing was read. If they all start at one place, {say} Otherwise give absolute paths in "
        "the column, and run precompute."
    )


class Folders:
    """Where the relative paths of a field's clips start. Not for several threads."""

    def __init__(self, cache: PlannedCache, field: FieldManifest, inputs: TextInputs) -> None:
        self._cache, self._field, self._inputs, self._told = cache, field, inputs, told(field)
        self._generations = generations_of_corpora(cache.manifest)
        self._corpora = corpora_of(cache)
        self._index = functools.lru_cache(maxsize=None)(self._read_index)

    @functools.cached_property
    def only(self) -> str | None:
        """The folder of all clips; None if they have several, or one that is not known."""
        if self._told.folder is not None:
            return self._told.folder if covers(self._field, self._cache.manifest) else None
        return only_corpus([self._cache]) or None

    def of(self, shard: ShardId, generation: int) -> list[str | None]:
        """Return the folder of each row of a shard, with the texts of a generation; None: not known."""
        if self.only is not None:
            return [self.only] * self._cache.manifest.num_rows(shard)
        came = np.maximum(self._said(shard), self._changed(shard, generation))
        urls = self._cache.plan.table(shard)["url"].to_pylist()
        return [self._folder(*row) for row in zip(came.tolist(), urls, strict=True)]

    def _folder(self, came: int, url: str) -> str | None:
        """Return where relative paths start of a clip that came last with a generation."""
        if self._told.folder is not None and came <= self._told.generation:
            return self._told.folder
        folder = self._corpora[came] if self._told.then_corpora else None
        if folder is None:
            return None
        within = without_file_scheme(file_of(url)).startswith(folder.rstrip("/") + "/")
        generation = self._cache.manifest.generations[came - 1]
        return None if may_have_moved(self._generations, generation, within=within) else folder

    def _said(self, shard: ShardId) -> npt.NDArray[np.int64]:
        """Return the last generation that says something of the source of each row."""
        names = self._cache.plan.table(shard)["source"]
        found = np.ones(len(names), np.int64)
        for generation in self._generations[1:]:
            if generation.num_sources:
                found[self._index(generation).find(names) >= 0] = generation.number
        return found

    def _read_index(self, generation: Generation) -> NameIndex:
        return NameIndex(read_sources(self._cache.storage, generation)["source"])

    def _changed(self, shard: ShardId, generation: int) -> npt.NDArray[np.int64]:
        """Return the last generation, up to one, that changed the texts of each row; 0: none."""
        found = np.zeros(self._cache.manifest.num_rows(shard), np.int64)
        numbers = {each.folder: each.number for each in self._cache.manifest.generations}
        while (folder := self._inputs.folder(shard, generation)) is not None:
            number, generation = numbers[folder], numbers[folder] - 1
            before, after = (self._inputs.of(shard, n) for n in (generation, number))
            differs = np.array([old != new for old, new in zip(before, after, strict=True)], bool)
            found[differs & (found == 0)] = number
        return found
