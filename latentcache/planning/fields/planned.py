"""A planned field: created once, opened again, and what is left to do in it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from latentcache.config.caption_fields import CaptionField
from latentcache.config.fields import (
    FieldConfig,
    path_columns,
    stored_field,
)
from latentcache.config.files import apply_overrides
from latentcache.core.records import Shard, ShardId
from latentcache.errors import ConfigError, RecipeMismatchError
from latentcache.format.fields.manifest import (
    MAX_CHOICES,
    FieldManifest,
    Version,
    VersionKind,
    create_version,
    field_fingerprint,
    read_field,
    refresh_field,
)
from latentcache.format.fields.paths import field_folder, field_json_path
from latentcache.format.fields.snapshot import (
    missing_versions,
    newest_versions,
    part_of,
    publish_field,
    rows_of,
    without_planned,
)
from latentcache.format.fields.taken import Texts
from latentcache.format.manifest import Manifest, read_manifest, recipe_difference
from latentcache.format.rounds import Rounds
from latentcache.format.shards import get_format
from latentcache.planning.corpora import generations_of_corpora
from latentcache.planning.create import write_arrays
from latentcache.planning.fields.columns import check_columns, columns_of
from latentcache.planning.fields.describe import describe_field
from latentcache.planning.fields.folders import (
    Folders,
    told,
    unknown_folder,
)
from latentcache.planning.fields.inputs import TextInputs
from latentcache.planning.fields.names import check_field_name
from latentcache.planning.fields.places import (
    config_folder,
    found_from_anywhere,
    is_relative,
    url_of,
    with_folder,
)
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage, redact
from latentcache.storage.temporary import TEMPORARY_SUFFIX


@dataclass(frozen=True, kw_only=True)
class FieldPart:
    """Rows of a shard that a version encodes. texts: of each row, after the places of its other files."""

    version: int
    rows: tuple[int, ...]
    texts: tuple[Texts, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FieldShard:
    """A task of a field: the versions of a shard that are not committed."""

    shard: Shard
    parts: tuple[FieldPart, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedField:
    """A field of a planned cache: what `add-field` and `resume` both work from."""

    cache: PlannedCache
    field: FieldManifest
    config: FieldConfig

    @property
    def storage(self) -> Storage:
        """The cache's storage."""
        return self.cache.storage

    @functools.cached_property
    def inputs(self) -> TextInputs:
        """The texts of the clips, and the paths of their other files."""
        return TextInputs(self.cache, self.config)

    @functools.cached_property
    def missing(self) -> dict[ShardId, list[Version]]:
        """The versions of each shard that are not committed, in order. Listed once."""
        if self.field.kind == "view":
            return {}
        shards = self.cache.planned_shards()
        return missing_versions(self.storage, self.field, self.cache.manifest, shards)

    def shard(self, shard: ShardId) -> FieldShard:
        """Return what is to be encoded of a shard."""
        return FieldShard(shard=self.cache.plan.shard(shard), parts=self.parts(shard))

    def parts(self, shard: ShardId) -> tuple[FieldPart, ...]:
        """Return the versions of a shard that are not committed; none if all are."""
        return tuple(self._part(shard, version) for version in self.missing.get(shard, ()))

    def _part(
        self, shard: ShardId, version: Version, changed: frozenset[int] = frozenset()
    ) -> FieldPart:
        """Return what a version encodes of a shard. changed: rows that a later one is to encode again."""
        rows = tuple(self._rows(shard, version))
        if not self.config.columns:
            return FieldPart(version=version.number, rows=rows)
        pin, replaced = self.inputs.pinned(version, shard), self._replaced(shard, version)
        texts = self._texts(shard, rows, pin, replaced | changed)
        return FieldPart(version=version.number, rows=rows, texts=texts)

    def _texts(
        self, shard: ShardId, rows: Iterable[int], pin: int, replaced: Collection[int] = ()
    ) -> tuple[Texts, ...]:
        """Return the texts of some rows as of a generation, after the places of their other files."""
        texts = self.inputs.of(shard, pin)
        found = {row: self._taken(texts[row]) for row in rows}
        if self.inputs.num_paths:
            folders = self.folders.of(shard, pin)
            for row, some in found.items():
                found[row] = self._placed(some, folders[row], is_replaced=row in replaced)
        return tuple(found.values())

    def _replaced(self, shard: ShardId, version: Version) -> set[int]:
        """Return the rows of a shard that are retired, or that a later version has."""
        found = set(self.cache.plan.standing.rows(shard))
        for later in self.field.versions:
            if later.number > version.number and later.rows:
                found.update(later.rows.get(shard, ()))
        return found

    def _placed(self, texts: Texts, folder: str | None, *, is_replaced: bool) -> Texts:
        """Return a clip's texts with the places of its paths. Raises ConfigError if they are not known."""
        paths, others = texts[: self.inputs.num_paths], texts[self.inputs.num_paths :]
        if folder is not None:
            return tuple(url_of(path, folder) for path in paths) + others
        if not any(map(is_relative, paths)):
            return texts
        if not is_replaced:
            raise unknown_folder(self.field, self.storage)
        return ("",) * len(paths) + others

    def _rows(self, shard: ShardId, version: Version) -> Iterable[int]:
        if version.rows is not None:
            return sorted(version.rows[shard])
        return range(self.cache.manifest.num_rows(shard))

    def num_clips(self, shards: Iterable[ShardId]) -> int:
        """Return how many clips some missing shards encode, in all; retired rows are none."""
        standing = self.cache.plan.standing
        return sum(
            len(set(self._rows(shard, version)) - set(standing.rows(shard)))
            for shard in shards
            for version in self.missing[shard]
        )

    def refreshed(self) -> PlannedField:
        """Return the field with the versions that there are now."""
        field = refresh_field(self.storage, self.field, self.cache.manifest)
        return PlannedField(cache=self.cache, field=field, config=self.config)

    def changed_rows(self) -> dict[ShardId, frozenset[int]]:
        """Return the rows whose texts are others now than those that their newest version encodes."""
        found: dict[ShardId, frozenset[int]] = {}
        if not self.config.columns:
            return found
        now = len(self.cache.manifest.generations)
        for shard in self.cache.planned_shards():
            rows = frozenset(self._changed_in(shard, now))
            rows -= frozenset(self.cache.plan.standing.rows(shard))
            if rows:
                found[shard] = rows
        return found

    def _changed_in(self, shard: ShardId, now: int) -> Iterator[int]:
        versions = [v for v in self.field.all_versions if v.rows is None or shard in v.rows]
        pins = [self.inputs.pinned(version, shard) for version in versions]
        folder = self.inputs.folder(shard, now)
        if all(self.inputs.folder(shard, pin) == folder for pin in pins):
            return
        texts = {pin: self.inputs.of(shard, pin) for pin in {*pins, now}}
        for row in range(self.cache.manifest.num_rows(shard)):
            holds = [v.rows is None or row in v.rows[shard] for v in versions]
            pin = pins[max(n for n, has in enumerate(holds) if has)]
            if self._taken(texts[pin][row]) != self._taken(texts[now][row]):
                yield row

    def _taken(self, texts: Texts) -> Texts:
        """Return what the field takes of a clip's texts: as many as it has room for; and every path."""
        return texts[: self.inputs.num_paths + self.field.choices]

    def failed_rows(self) -> dict[ShardId, frozenset[int]]:
        """Return the rows whose newest version failed in a way that need not come again.

        Those that an earlier retry has planned, and not encoded, are left out.
        """
        index = publish_field(self.storage, self.field, self.cache.manifest)
        counted = set(self.cache.planned_shards())
        found: dict[ShardId, frozenset[int]] = {}
        for shard, versions in newest_versions(self.field, index).items():
            if shard not in counted:
                continue
            seen = set(self.cache.plan.standing.rows(shard))
            failed: set[int] = set()
            for row in versions:
                failed |= {*row["failed"]}.difference(row["lasting"], seen)
                seen.update(rows_of(self.field, self.cache.manifest, part_of(row)))
            if failed:
                found[shard] = frozenset(failed)
        return without_planned(self.storage, self.field, self.cache.manifest, found)

    @functools.cached_property
    def folders(self) -> Folders:
        """Where relative paths of the clips start."""
        return Folders(self.cache, self.field, self.inputs)

    @property
    def has_paths(self) -> bool:
        """Whether it reads files whose paths are in columns."""
        return bool(path_columns(self.config))

    @property
    def is_moved(self) -> bool:
        """Whether the field was not told yet what its settings say of where relative paths start."""
        before, folder = told(self.field), config_folder(self.config)
        if not self.has_paths or folder is None:
            return self.has_paths and not before.then_corpora
        last = generations_of_corpora(self.cache.manifest)[-1].number
        is_other = folder != before.folder or before.then_corpora
        return is_other or last > before.generation

    def check_folders(self) -> None:
        """Raise ConfigError if it is not known where the paths start that are, or will be, to be read."""
        if not self.has_paths or self.folders.only is not None:
            return
        changed, now = self.changed_rows(), len(self.cache.manifest.generations)
        for shard, rows in changed.items():
            self._texts(shard, rows, now)
        for shard, versions in self.missing.items():
            for version in versions:
                self._part(shard, version, changed.get(shard, frozenset()))

    def with_version(self, kind: VersionKind, rows: Mapping[ShardId, frozenset[int]]) -> bool:
        """Write a version of some rows; False: another run has written one first."""
        generation = len(self.cache.manifest.generations)
        return create_version(self.storage, self.field, kind, generation, rows)

    def with_folder(self) -> bool:
        """Write a version of no rows that says where relative paths start; False: another run was first."""
        generation = len(self.cache.manifest.generations)
        folder = config_folder(self.config) or ""
        return create_version(self.storage, self.field, "move", generation, {}, folder)


def plan_field(
    cache: PlannedCache, name: str, config: FieldConfig, corpus: str | None = None
) -> PlannedField:
    """Return what a field would be in a cache, with nothing written. Raises ConfigError, EncoderError.

    One that is not there yet is refused, too, if it is not known where its relative paths start.
    corpus: where the corpus is now; None: where it was when the cache was made, as far as is known.
    """
    check_field_name(name, cache.manifest)
    config = with_folder(cache, name, config, corpus)
    found = describe_field(config, cache.manifest)
    field = FieldManifest(
        name=name,
        kind=config.kind,
        fingerprint=field_fingerprint(found.recipe, found.arrays, cache.manifest.fingerprint),
        cache=cache.manifest.fingerprint,
        recipe=found.recipe,
        arrays=found.arrays,
        choices=1,
        generation=len(cache.manifest.generations),
        settings=found_from_anywhere(config),
    )
    planned = PlannedField(cache=cache, field=field, config=config)
    check_columns(config, columns_of(cache.manifest))
    if not cache.storage.exists(field_json_path(name)):
        planned.check_folders()
    if not isinstance(config, CaptionField):
        return planned
    return replace(planned, field=replace(field, choices=_num_choices(planned, config)))


def _num_choices(planned: PlannedField, config: CaptionField) -> int:
    """Return how many texts a clip has at most; looks at every clip."""
    now, most = planned.field.generation, 1
    if config.max_choices is not None:
        most = config.max_choices
    else:
        for shard in planned.cache.planned_shards():
            texts = planned.inputs.of(shard, now)
            most = max(most, *(len(of_clip) - planned.inputs.num_paths for of_clip in texts))
    if most > MAX_CHOICES:
        raise ConfigError(f"a clip has {most} texts; a field holds up to {MAX_CHOICES} per clip")
    return most


def create_field(planned: PlannedField) -> PlannedField:
    """Write field.json, or take the one that is there. Raises RecipeMismatchError, ConfigError."""
    there = create_manifest(planned.storage, planned.cache.manifest, planned.field)
    return replace(planned, field=there)


def create_manifest(storage: Storage, manifest: Manifest, field: FieldManifest) -> FieldManifest:
    """Write field.json and the arrays' metadata, or take those that are there; as `create_field` does."""
    name = field.name
    path = field_json_path(name)
    # First, as another run may write field.json now. What a killed run was writing is no field's.
    files = storage.files(field_folder(name))
    left = [file for file in files if not file.path.endswith(TEMPORARY_SUFFIX)]
    if left and not storage.exists(path):
        raise ConfigError(
            f"{redact(storage.url)}: there is no field {name}, and yet {left[0].path}, of one that was not "
            "dropped to the end. Nothing was written. Drop it again: latentcache "
            f"drop-field {redact(storage.url)} {name} --yes"
        )
    storage.create(path, field.to_bytes())
    there = read_field(storage, name, manifest)
    _check_same(storage, there, field)
    write_metadata(storage, manifest, there)
    return there


def _check_same(storage: Storage, old: FieldManifest, new: FieldManifest) -> None:
    lines = recipe_difference(old.recipe, new.recipe)
    lines += recipe_difference({"arrays": _shapes(old)}, {"arrays": _shapes(new)})
    if lines or old.fingerprint != new.fingerprint:
        raise RecipeMismatchError(
            f"{redact(storage.url)}: the field {old.name} was made with another recipe; continuing would "
            "mix two kinds of values. Nothing was changed. The difference:\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\nGive the new one another name, or drop the old one: latentcache drop-field "
            f"{redact(storage.url)} {old.name} --yes"
        )


def _shapes(field: FieldManifest) -> list[str]:
    return [f"{a.name} {list(a.shape)} {a.dtype} {a.padding} {a.side}" for a in field.arrays]


def write_field_metadata(planned: PlannedField) -> None:
    """Write the arrays' metadata where it is missing, damaged, or of a smaller array."""
    write_metadata(planned.storage, planned.cache.manifest, planned.field)


def write_metadata(storage: Storage, manifest: Manifest, field: FieldManifest) -> None:
    """Write the arrays' metadata of a field as `write_field_metadata` does."""
    if field.kind != "view":
        write_arrays(storage, manifest, functools.partial(_metadata, field))


def _metadata(field: FieldManifest, manifest: Manifest) -> Mapping[str, bytes]:
    """Return the metadata of a field's arrays by path."""
    found: dict[str, bytes] = {}
    for version in field.all_versions:
        buckets = {shard.bucket for shard in version.rows or ()}
        for bucket in manifest.buckets:
            if version.rows is None or bucket.name in buckets:
                layouts = field.layouts(manifest, version.number, bucket.name)
                found |= get_format(manifest.format).metadata(layouts)
    return found


def repair_field(
    storage: Storage, field: FieldManifest, rows: Mapping[ShardId, frozenset[int]]
) -> int:
    """Plan damaged rows of a field again, as a version, unless they are; returns how many.

    Raises CacheError.
    """
    rounds = Rounds("the repair of the field")
    while True:
        rounds.next()
        manifest = read_manifest(storage)
        field = refresh_field(storage, field, manifest)
        left = without_planned(storage, field, manifest, rows)
        if not left or create_version(storage, field, "repair", len(manifest.generations), left):
            return sum(map(len, left.values()))


def reopen_field(cache: PlannedCache, name: str, overrides: Iterable[str] = ()) -> PlannedField:
    """Return a field that is there, as it was configured. Raises ConfigError, RecipeMismatchError.

    overrides: of its settings, such as fields.umt5.model=PLACE; what its values follow from cannot change.
    """
    field = read_field(cache.storage, name, cache.manifest)
    own = [o for o in overrides if o.startswith(f"fields.{name}.")]
    changed = apply_overrides({"fields": {name: dict(field.settings)}}, own)["fields"][name]
    config = stored_field(name, changed)
    config = with_folder(cache, name, config, None)
    found = describe_field(config, cache.manifest)
    wanted = replace(
        field,
        recipe=found.recipe,
        arrays=found.arrays,
        fingerprint=field_fingerprint(found.recipe, found.arrays, field.cache),
    )
    _check_same(cache.storage, field, wanted)
    return PlannedField(cache=cache, field=field, config=config)
