"""Clean: what a cache's folder holds that no plan refers to. Nothing is touched here.

A cache never deletes by itself. A write that was cut off leaves its temporary file. Planning that was
cut off and repeated with another configuration leaves the first one's tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from latentcache.core.records import ShardId
from latentcache.corpus.saved_probes import is_saved_probe
from latentcache.format.changes import read_changes
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.paths import FIELDS
from latentcache.format.manifest import Manifest
from latentcache.format.paths import (
    CACHE_JSON,
    COLUMNS,
    COPIED,
    GENERATIONS,
    IMPORTED,
    INDEX,
    LEASE,
    PLAN,
    QUANTISER,
    RETIRED,
    SAMPLES,
    generation_path,
    sample_path,
)
from latentcache.format.shards import get_format
from latentcache.inspecting.field_files import FieldFiles, is_field_file
from latentcache.running.log_lines import is_log
from latentcache.storage.folder import Storage, StoredFile

#: A write takes seconds, and a step of planning minutes: a file of this age belongs to none that goes on.
YOUNG_S = 3600.0
#: As `storage.temporary` names them, beside the file that they were to become.
_TEMPORARY = re.compile(r"(?:.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp")
_BUCKET = r"([1-9]\d*x[1-9]\d*x[1-9]\d*)"
_FOLDER = r"\d{6,}-[0-9a-f]{12}"
#: Everything that a plan or a commit of either format writes for a bucket.
_OURS = re.compile(
    rf"{GENERATIONS}/\d{{6}}\.json|"
    rf"(?:plan|columns)/{_FOLDER}/(?:[a-z]+|{_BUCKET}(?:/\d{{6,}})?)\.parquet|"
    rf"(?:retired|copied|imported)/{_FOLDER}\.parquet|"
    rf"samples/{_BUCKET}/\d{{6,}}\.parquet|latents/{_BUCKET}/"
    r"(?:zarr\.json|\d{6,}\.parquet|c/\d+(?:/0)+)"
)


@dataclass(kw_only=True)
class Leftovers:
    """What is in a cache's folder beyond the cache, by path.

    temporary: of interrupted writes and planning. unplanned: of no generation and no field, such as the
    plan of a run that came second. retired: of shards all of whose rows were retired long ago. These can
    go. recent: young, and perhaps being written. foreign: not of a cache, and left.
    """

    temporary: list[StoredFile] = field(default_factory=list)
    unplanned: list[StoredFile] = field(default_factory=list)
    retired: list[StoredFile] = field(default_factory=list)
    recent: list[StoredFile] = field(default_factory=list)
    foreign: list[StoredFile] = field(default_factory=list)

    @property
    def removable(self) -> list[StoredFile]:
        """What cleaning removes."""
        return [*self.temporary, *self.unplanned, *self.retired]


def find_leftovers(
    files: Iterable[StoredFile],
    manifest: Manifest,
    now_s: float,
    retired: Collection[ShardId] = (),
    fields: Sequence[FieldManifest] = (),
) -> Leftovers:
    """Sort out the files that do not belong to the cache. now_s: since the epoch.

    retired: shards that no snapshot of use holds any more. fields: those of the cache.
    """
    found, planned = Leftovers(), _Planned(manifest, retired, fields)
    for file in files:
        kind = planned.kind(file.path)
        old = file.modified_s is not None and now_s - file.modified_s > YOUNG_S
        if file.is_link:
            found.foreign.append(file)
        elif kind == "retired":
            found.retired.append(file)
        elif kind == "planned":
            continue
        elif _is_temporary(file.path):
            (found.temporary if old else found.recent).append(file)
        elif _OURS.fullmatch(file.path) or is_field_file(file.path):
            (found.unplanned if old else found.recent).append(file)
        else:
            found.foreign.append(file)
    return found


def retired_shards(
    storage: Storage, files: Iterable[StoredFile], manifest: Manifest, before_s: float
) -> list[ShardId]:
    """Return the shards all of whose rows were retired before a time. Raises CorruptionError.

    Rows that were copied were retired when the copy's shard was committed, which its file tells. A
    generation is as young as its file, too: the clock of the machine that wrote it may have been wrong.
    """
    paths = {
        file.path for file in files if file.modified_s is not None and file.modified_s <= before_s
    }
    committed = {
        shard
        for bucket in manifest.buckets
        for shard in (ShardId(bucket.name, n) for n in range(bucket.num_shards))
        if sample_path(*shard) in paths
    }
    old = 0
    for generation in manifest.generations:
        if generation.created_s > before_s or generation_path(generation.number) not in paths:
            break
        old += 1
    return sorted(read_changes(storage, manifest.at(old)).among(committed).retired_shards(manifest))


def is_sample_table(path: str) -> bool:
    """Tell whether one of a cache's objects is a sample table, of latents or of a field."""
    return SAMPLES in path.split("/")


def _is_temporary(path: str) -> bool:
    """Tell whether a file is from planning or from a write that was cut off."""
    return is_saved_probe(path) or bool(_TEMPORARY.fullmatch(path) and _is_of_cache(path))


def _is_of_cache(path: str) -> bool:
    """Tell whether a temporary file was to become an object of a cache."""
    folder, _, name = path.rpartition("/")
    final = f"{folder}/{name[1:-37]}" if folder else name[1:-37]
    return is_cache_file(final) or is_log(final) or is_saved_probe(final)


def is_cache_file(path: str) -> bool:
    """Tell whether a file is named as an object of some cache is."""
    return (
        path in (CACHE_JSON, INDEX, QUANTISER, LEASE, "zarr.json", "latents/zarr.json")
        or _OURS.fullmatch(path) is not None
        or is_field_file(path)
    )


class _Planned:
    """The paths of a cache's objects."""

    def __init__(
        self,
        manifest: Manifest,
        retired: Collection[ShardId],
        fields: Sequence[FieldManifest],
    ) -> None:
        self._fields = {field.name: FieldFiles(field, manifest, retired) for field in fields}
        self._format, self._layouts = get_format(manifest.format), manifest.layouts()
        self._num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
        self._retired = set(retired)
        self._folders = {generation.folder for generation in manifest.generations}
        self._fixed = {
            CACHE_JSON,
            INDEX,
            LEASE,
            *((QUANTISER,) if manifest.quantiser_sha256 else ()),
            *(generation_path(generation.number) for generation in manifest.generations),
            *self._format.metadata(list(self._layouts.values())),
        }

    def kind(self, path: str) -> str:
        """Return `planned`, `retired`, or nothing for a file that is neither."""
        if path in self._fixed or is_log(path):
            return "planned"
        kind, _, rest = path.partition("/")
        folder, _, name = rest.partition("/")
        if kind == FIELDS:
            return self._fields[folder].kind(path) if folder in self._fields else ""
        if kind in (PLAN, COLUMNS, RETIRED, COPIED, IMPORTED):
            return "planned" if folder.removesuffix(".parquet") in self._folders else ""
        digits = re.match(r"(?:c/)?(\d{1,18})", name)
        if folder not in self._layouts or digits is None:
            return ""
        shard = ShardId(folder, int(digits[1]))
        paths = {
            SAMPLES: sample_path(*shard),
            "latents": self._format.path(self._layouts[folder], shard.number),
        }
        if shard.number >= self._num_shards[folder] or paths.get(kind) != path:
            return ""
        return "retired" if shard in self._retired else "planned"
