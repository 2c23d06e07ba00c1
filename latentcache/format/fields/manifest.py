"""`field.json`: what a field is. Written once; and the versions that follow it, each written once, too.

The first version holds all rows of the cache. A later one holds only those that its table lists: texts that
have changed, failed or damaged rows. The newest version of a row counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import pydantic

from latentcache.core.fields import FieldArray, FieldKind, check_name
from latentcache.core.json_text import OTHER_SHAPE, fault_of, parse_json
from latentcache.core.records import Bucket, ShardId
from latentcache.errors import CacheError, ConfigError, CorruptionError, did_you_mean
from latentcache.format import checksum
from latentcache.format.damage import damaged
from latentcache.format.fields.paths import (
    FIELDS,
    array_folder,
    field_json_path,
    number_of_version,
    version_path,
    versions_folder,
)
from latentcache.format.manifest import CREATED_BY, Manifest
from latentcache.format.schemas import RETIRED_SCHEMA, check_columns
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.tables import from_parquet, read_bounded, read_sealed, to_parquet
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

FIELD_FORMAT_VERSION = 1
MAX_FIELD_BYTES = 1 << 24
MAX_CHOICES = 1024
NUM_THREADS = 16
#: plan: the first; update: texts or paths that have changed; retry: failed rows; repair: damaged ones;
#: move: of no rows, it says where relative paths start.
VersionKind = Literal["plan", "update", "retry", "repair", "move"]
#: Key of a version's metadata: what it is.
VERSION_FACTS = "latentcache.version"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A step of a field. generation: of the cache, as whose captions stand in it the texts are read.

    rows: of each shard; None: all. folder: of a move, where the relative paths start of all that has come;
    empty: from now on, of what comes, at its corpus. sha256: of its table, empty for the first.
    """

    number: int
    kind: VersionKind
    generation: int
    rows: Mapping[ShardId, frozenset[int]] | None = None
    folder: str | None = None
    sha256: str = ""

    def num_rows(self) -> int:
        """Return how many rows it lists."""
        return sum(map(len, (self.rows or {}).values()))


@dataclass(frozen=True, kw_only=True)
class FieldManifest:
    """The contents of `field.json`, and the versions that follow it.

    cache: the fingerprint of the cache whose rows it has. arrays: the first is the field's own. choices:
    samples per row, such as captions. generation: see Version. settings: as the field was configured, with
    the `folder` of the newest version that has one.
    """

    name: str
    kind: FieldKind
    fingerprint: str
    cache: str
    recipe: Mapping[str, Any]
    arrays: tuple[FieldArray, ...]
    choices: int
    generation: int
    settings: Mapping[str, Any]
    created_by: str = CREATED_BY
    format_version: int = FIELD_FORMAT_VERSION
    versions: tuple[Version, ...] = ()

    @property
    def all_versions(self) -> tuple[Version, ...]:
        """Every version, the first included."""
        return (Version(number=1, kind="plan", generation=self.generation), *self.versions)

    @property
    def has_columns(self) -> bool:
        """Whether its values follow from captions, or from other columns of the corpus."""
        is_of_column = any(self.settings.get(name) is not None for name in ("column", "masks"))
        return self.kind in ("text", "joint") or is_of_column

    def key(self, array: FieldArray) -> str:
        """Return an array's key in batches and samples."""
        return f"{self.name}.{array.name}" if array.name else self.name

    def layout(
        self, array: FieldArray, manifest: Manifest, latents: ArrayLayout, version: int
    ) -> ArrayLayout:
        """Return an array of a bucket. latents: the layout of the bucket's latents."""
        return ArrayLayout(
            bucket=latents.bucket,
            shape=array.shape_in(latents.bucket, manifest.spec),
            dtype=array.dtype,
            num_rows=latents.num_rows,
            shard_rows=latents.shard_rows,
            codec=latents.codec,
            level=latents.level,
            folder=array_folder(self.name, version, array.name),
            choices=self.choices,
            padded=array.side if array.ragged else None,
            piece=array.piece,
        )

    def layouts(self, manifest: Manifest, version: int, bucket: str) -> list[ArrayLayout]:
        """Return a bucket's arrays of a version, the field's own first."""
        info = next(info for info in manifest.buckets if info.name == bucket)
        latents = manifest.layout(info)
        return [self.layout(array, manifest, latents, version) for array in self.arrays]

    def to_bytes(self) -> bytes:
        """Return the JSON text of field.json, sealed."""
        data = dataclasses.asdict(self)
        del data["versions"]
        return checksum.seal_json(data)


_ADAPTER = pydantic.TypeAdapter(FieldManifest)


def field_fingerprint(recipe: Mapping[str, Any], arrays: Sequence[FieldArray], cache: str) -> str:
    """Return the SHA-256 of all that determines a field's values but the corpus."""
    data = {"recipe": recipe, "arrays": [dataclasses.asdict(a) for a in arrays], "cache": cache}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def field_names(storage: Storage) -> list[str]:
    """Return the names of a cache's fields, in order."""
    return [name for name in storage.folders(FIELDS) if storage.exists(field_json_path(name))]


def read_field(storage: Storage, name: str, manifest: Manifest) -> FieldManifest:
    """Read what a field is, and its versions. Raises ConfigError if there is none, CorruptionError."""
    check_name(name)
    path = field_json_path(name)
    try:
        data = read_sealed(storage, path, MAX_FIELD_BYTES)
    except FileNotFoundError:
        known = field_names(storage)
        there = f"It has: {', '.join(known)}." if known else "It has none."
        raise ConfigError(
            f"{redact(storage.url)} has no field {name!r}.{did_you_mean(name, known)} {there} "
            "`latentcache add-field` adds one."
        ) from None
    try:
        checksum.check(data)
        raw = {key: value for key, value in parse_json(data).items() if key != checksum.KEY}
        if int(raw["format_version"]) > FIELD_FORMAT_VERSION:
            raise CacheError(  # noqa: TRY301 - it leaves by the next clause, as it is
                f"{redact(storage.url)}/{path} has format version {raw['format_version']}; this "
                f"latentcache reads up to {FIELD_FORMAT_VERSION}. Install a newer latentcache."
            )
        field = _ADAPTER.validate_json(json.dumps(raw), strict=True)
        _check(field, name, manifest)
    except CacheError:
        raise
    except OTHER_SHAPE as error:
        raise damaged(storage, path, f"does not say what the field is: {fault_of(error)}") from None
    return refresh_field(storage, field, manifest)


def _check(field: FieldManifest, name: str, manifest: Manifest) -> None:
    """Raise ValueError where a field is not one of this cache."""
    if field.name != name:
        raise ValueError(f"it is of a field {field.name!r}")
    if field.cache != manifest.fingerprint:
        raise ValueError("it is of another cache")
    if field.fingerprint != field_fingerprint(field.recipe, field.arrays, field.cache):
        raise ValueError("its fingerprint is not that of its recipe")
    if not field.arrays or field.arrays[0].name or not 0 < field.choices <= MAX_CHOICES:
        raise ValueError("it has no array of its own, or a number of choices that cannot be")


def refresh_field(storage: Storage, field: FieldManifest, manifest: Manifest) -> FieldManifest:
    """Return the field with the versions that there are now. Raises CorruptionError."""
    files = storage.list(versions_folder(field.name))
    numbers = sorted(n for n in map(number_of_version, files) if n is not None)
    if numbers != list(range(2, len(numbers) + 2)):
        first = next(n for n in range(2, len(numbers) + 3) if n not in numbers)
        raise damaged(
            storage, version_path(field.name, first), "is missing, and later ones are there"
        )
    wanted = numbers[len(field.versions) :]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(lambda n: _read_version(storage, field, n), wanted))
    versions = list(field.versions)
    for version, parent in found:
        before = versions[-1].sha256 if versions else ""
        if parent != before:
            path = version_path(field.name, version.number)
            raise damaged(storage, path, "does not follow the version before it")
        versions.append(version)
    _check_rows(storage, field, versions, manifest)
    folders = [version.folder for version in versions if version.folder]
    settings = {**field.settings, **({"folder": folders[-1]} if folders else {})}
    return dataclasses.replace(field, versions=tuple(versions), settings=settings)


def _check_rows(
    storage: Storage, field: FieldManifest, versions: Sequence[Version], manifest: Manifest
) -> None:
    num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
    for version in versions:
        for shard in version.rows or ():
            if version.generation <= len(manifest.generations) and not (
                0 <= shard.number < num_shards.get(shard.bucket, 0)
            ):
                path = version_path(field.name, version.number)
                raise damaged(storage, path, f"names shard {shard.name}, which is not planned")


def _read_version(storage: Storage, field: FieldManifest, number: int) -> tuple[Version, str]:
    """Read a version; returns it and the digest of the one before that it repeats."""
    path = version_path(field.name, number)
    try:
        data = read_sealed(storage, path)
        table = from_parquet(data)
        check_columns(table, RETIRED_SCHEMA)
        facts = parse_json((table.schema.metadata or {})[VERSION_FACTS.encode()])
        _check_facts(field, facts, number)
        rows = _rows_by_shard(table)
    except CorruptionError:
        raise
    except (*OTHER_SHAPE, FileNotFoundError) as error:
        raise damaged(storage, path, f"is no version of the field: {fault_of(error)}") from None
    version = Version(
        number=number,
        kind=facts["kind"],
        generation=facts["generation"],
        rows=rows,
        folder=facts.get("folder"),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return version, str(facts["parent_sha256"])


def _check_facts(field: FieldManifest, facts: Mapping[str, Any], number: int) -> None:
    if facts["field"] != field.fingerprint or facts["number"] != number:
        raise ValueError("it is of another field")
    if facts["kind"] not in get_args(VersionKind) or type(facts["generation"]) is not int:
        raise ValueError("it does not say what it is")
    if not isinstance(facts.get("folder"), str | None):
        raise ValueError("the folder of its files is no text")  # noqa: TRY004 - as all of this form


def _rows_by_shard(table: pa.Table) -> dict[ShardId, frozenset[int]]:
    rows: dict[ShardId, set[int]] = {}
    columns = (table[name].to_pylist() for name in ("bucket", "shard", "row"))
    for bucket, shard, row in zip(*columns, strict=True):
        rows.setdefault(ShardId(Bucket.parse(bucket).name, shard), set()).add(row)
    return {shard: frozenset(found) for shard, found in rows.items()}


def create_version(
    storage: Storage,
    field: FieldManifest,
    kind: VersionKind,
    generation: int,
    rows: Mapping[ShardId, frozenset[int]],
    folder: str | None = None,
) -> bool:
    """Write the version after those of a field; returns whether it counts. folder: see Version.

    False: another run has written one of that number first, so what is left to do is to be looked at again.
    """
    number = len(field.versions) + 2
    places = [
        {"bucket": shard.bucket, "shard": shard.number, "row": row, "why": kind}
        for shard, numbers in sorted(rows.items())
        for row in sorted(numbers)
    ]
    facts = {
        "field": field.fingerprint,
        "number": number,
        "kind": kind,
        "generation": generation,
        "parent_sha256": field.versions[-1].sha256 if field.versions else "",
        **({"folder": folder} if folder is not None else {}),
    }
    table = pa.Table.from_pylist(places, schema=RETIRED_SCHEMA)
    data = to_parquet(table, {VERSION_FACTS: facts})
    path = version_path(field.name, number)
    # After a lost answer, what is there is this version; or another run's of the same rows.
    return storage.create(path, data) or read_bounded(storage, path) == data
