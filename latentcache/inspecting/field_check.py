"""Verify a field: every object of it is read once, and compared with what its sample table says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
import pyarrow as pa

from latentcache.core.dtypes import numpy_dtype
from latentcache.core.records import ShardId
from latentcache.errors import CacheError, CorruptionError
from latentcache.format.changes import Standing
from latentcache.format.commit import read_object
from latentcache.format.fields.commit import (
    check_field_table,
    chunk_refs,
    derive_field_table,
    other_objects,
    read_field_table,
)
from latentcache.format.fields.manifest import (
    FieldManifest,
    field_names,
    read_field,
    refresh_field,
)
from latentcache.format.fields.nulls import read_nulls
from latentcache.format.fields.paths import (
    field_index_path,
    field_json_path,
    field_sample_path,
    nulls_path,
)
from latentcache.format.fields.snapshot import (
    Part,
    build_field_index,
    committed_parts,
    count_field,
    part_of,
    publish_field,
    read_field_index,
    rows_of,
)
from latentcache.format.manifest import Manifest, read_manifest, refresh
from latentcache.format.schemas import object_facts
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.snapshot import current_index
from latentcache.format.tables import from_parquet
from latentcache.inspecting.array_metadata import metadata_problem
from latentcache.inspecting.field_counts import FieldCounter
from latentcache.inspecting.status_words import behind_lines
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

NUM_THREADS = 4


@dataclass(kw_only=True)
class FieldFindings:
    """What checking a field found. problems: (path, what).

    damaged: rows to encode again, by shard; derived: sample tables to be written again from their objects.
    """

    name: str
    manifest: FieldManifest | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: dict[ShardId, set[int]] = field(default_factory=dict)
    derived: list[Part] = field(default_factory=list)
    num_samples: int = 0
    num_bytes: int = 0


@dataclass(kw_only=True)
class _PartCheck:
    part: Part
    problems: list[tuple[str, str]] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)
    is_derived: bool = False
    num_samples: int = 0
    num_bytes: int = 0


def check_fields(
    storage: Storage, manifest: Manifest, standing: Standing
) -> Iterator[FieldFindings]:
    """Check every field of a cache, one after the other."""
    for name in field_names(storage):
        manifest = refresh(storage, manifest)  # for arrays may have grown meanwhile
        yield check_field(storage, manifest, standing, name)


def check_field(
    storage: Storage, manifest: Manifest, standing: Standing, name: str
) -> FieldFindings:
    """Check a field."""
    found = FieldFindings(name=name)
    try:
        known = found.manifest = read_field(storage, name, manifest)
    except CacheError as error:
        found.problems.append((field_json_path(name), str(error)))
        return found
    if known.kind == "view":  # nothing is stored
        return found
    parts = committed_parts(storage, known, manifest)
    _check_metadata(storage, manifest, known, parts, found)
    try:
        if not read_nulls(storage, known) and known.kind == "text":
            found.notes.append(f"the field {name} has no encoded empty text yet")
    except CorruptionError as error:
        found.problems.append((nulls_path(name), str(error)))
    there = set(parts)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for check in pool.map(lambda part: _check_part(storage, manifest, known, part), parts):
            _take(found, check, _spent(known, check.part, there, standing))
    _check_index(storage, manifest, known, standing, found)
    return found


def _check_metadata(
    storage: Storage,
    manifest: Manifest,
    known: FieldManifest,
    parts: Collection[Part],
    found: FieldFindings,
) -> None:
    """Check the arrays' metadata, which need not know of shards that are still to be encoded."""
    committed: dict[tuple[int, str], int] = {}
    for part in parts:
        array = (part.version, part.shard.bucket)
        end = part.shard.number * manifest.shard_clips + manifest.num_rows(part.shard)
        committed[array] = max(committed.get(array, 0), end)
    for version in known.all_versions:
        buckets = {bucket.name for bucket in manifest.buckets}
        if version.rows is not None:
            buckets = {shard.bucket for shard in version.rows}
        for bucket in sorted(buckets):
            layouts = known.layouts(manifest, version.number, bucket)
            rows = committed.get((version.number, bucket), 0)
            for path, expected in get_format(manifest.format).metadata(layouts).items():
                if what := metadata_problem(storage, path, expected, "field.json", rows):
                    url = redact(storage.url)
                    fix = f"It is written again by: latentcache resume {url} --field {known.name}"
                    found.problems.append((path, f"{what}. {fix}"))


def _check_part(
    storage: Storage, manifest: Manifest, known: FieldManifest, part: Part
) -> _PartCheck:
    check = _try_part(storage, manifest, known, part)
    # Once more, in case the fault was on the way here.
    return _try_part(storage, manifest, known, part) if check.problems else check


def _try_part(storage: Storage, manifest: Manifest, known: FieldManifest, part: Part) -> _PartCheck:
    check = _PartCheck(part=part)
    layouts = known.layouts(manifest, part.version, part.shard.bucket)
    wanted = set(rows_of(known, manifest, part))
    objects = [_read(storage, manifest, layout, part.shard, check) for layout in layouts]
    embedded = _embedded(storage, manifest, known, layouts[0], part.shard, objects[0])
    path = field_sample_path(known.name, *part)
    try:
        table, _ = read_field_table(storage, known, part.version, part.shard)
        _check_equal(table, embedded)
    except (FileNotFoundError, ValueError) as error:
        check.problems.append((path, str(error)))
        check.is_derived = embedded is not None
        if embedded is None:
            check.rows = wanted
            return check
        table = embedded
    if set(table["row"].to_pylist()) != wanted:
        check.problems.append((path, "it has other rows than its version"))
        check.rows = wanted
        return check
    for n, (layout, data) in enumerate(zip(layouts, objects, strict=True)):
        _check_samples(manifest, known, layout, n, table, data, check)
    _check_objects(manifest, known, layouts, table, objects, check)
    return check


def _check_objects(
    manifest: Manifest,
    known: FieldManifest,
    layouts: Sequence[ArrayLayout],
    table: pa.Table,
    objects: Sequence[bytes | None],
    check: _PartCheck,
) -> None:
    """Check the bytes between samples, where all samples are sound."""
    if check.problems:
        return
    facts = [object_facts(table, known.fingerprint)]
    others = other_objects(table)
    facts += [others.get(array.name, {}) for array in known.arrays[1:]]
    for layout, data, fact in zip(layouts, objects, facts, strict=True):
        if data is not None and google_crc32c.value(data) != fact.get("crc32c"):
            path = get_format(manifest.format).path(layout, check.part.shard.number)
            what = "bytes of its index or its table, or between its samples, are damaged"
            check.problems.append((path, what))
            check.rows |= set(table["row"].to_pylist())


def _check_equal(table: pa.Table, embedded: pa.Table | None) -> None:
    if embedded is not None and not table.equals(embedded):
        raise ValueError("it differs from the sample table in its object")


def _read(
    storage: Storage, manifest: Manifest, layout: ArrayLayout, shard: ShardId, check: _PartCheck
) -> bytes | None:
    shard_format = get_format(manifest.format)
    path = shard_format.path(layout, shard.number)
    try:
        data = read_object(storage, shard_format, layout, shard.number)
    except CorruptionError as error:
        check.problems.append((path, str(error)))
        return None
    if data is None:
        check.problems.append((path, "it is missing, although its sample table is there"))
        return None
    check.num_bytes += len(data)
    return data


def _embedded(
    storage: Storage,
    manifest: Manifest,
    known: FieldManifest,
    layout: ArrayLayout,
    shard: ShardId,
    data: bytes | None,
) -> pa.Table | None:
    """Return the sample table that an object gives, as it is derived; None if it gives none."""
    if data is None:
        return None
    try:
        derived = derive_field_table(
            storage, get_format(manifest.format), known, layout, shard, data
        )
        table = from_parquet(derived)
        check_field_table(table, known, shard)
    except (ValueError, CorruptionError):
        return None
    return table


def _check_samples(
    manifest: Manifest,
    known: FieldManifest,
    layout: ArrayLayout,
    n: int,
    table: pa.Table,
    data: bytes | None,
    check: _PartCheck,
) -> None:
    """Check each sample of an array in its object."""
    status = table["status"].to_pylist()
    ok = [i for i, value in enumerate(status) if value == "ok"]
    rows = table["row"].to_pylist()
    if data is None:
        check.rows |= {rows[i] for i in ok}
        return
    shard_format = get_format(manifest.format)
    path = shard_format.path(layout, check.part.shard.number)
    out = np.empty(layout.shape, numpy_dtype(layout.dtype))
    for i, ref in zip(ok, chunk_refs(table, known.arrays[n], known.choices, ok), strict=True):
        block = np.frombuffer(data, np.uint8)[ref.offset : ref.offset + ref.length]
        what = None
        if len(block) != ref.length or google_crc32c.value(block) != ref.crc32c:
            what = "its bytes fail their CRC32C"
        else:
            try:
                shard_format.decode(layout, data, ref, out)
            except ValueError as error:
                what = f"its bytes do not decompress ({error})"
        check.num_samples += n == 0
        if what is not None:
            check.problems.append((path, f"row {rows[i]}: {what}"))
            check.rows.add(rows[i])


def _spent(
    known: FieldManifest, part: Part, parts: Collection[Part], standing: Standing
) -> set[int]:
    """Return the rows of a part that no longer count: retired ones, and those of newer versions."""
    spent = set(standing.rows(part.shard))
    for version in known.versions:
        newer = version.number > part.version and Part(version.number, part.shard) in parts
        spent |= (version.rows or {}).get(part.shard, frozenset()) if newer else frozenset()
    return spent


def _take(found: FieldFindings, check: _PartCheck, spent: set[int]) -> None:
    found.num_samples += check.num_samples
    found.num_bytes += check.num_bytes
    rows = check.rows - spent
    if check.is_derived:  # also where samples are damaged, for the others' rows are read from it
        found.derived.append(check.part)
    elif check.rows and not rows:
        return  # only what no longer counts is damaged
    found.problems += check.problems
    if rows:
        found.damaged.setdefault(check.part.shard, set()).update(rows)


def _check_index(
    storage: Storage,
    manifest: Manifest,
    known: FieldManifest,
    standing: Standing,
    found: FieldFindings,
) -> None:
    """Compare the field's snapshot with its sample tables.

    Another run may publish meanwhile, so it is read before what it is compared with.
    """
    path = field_index_path(known.name)
    fix = f"Run: latentcache resume {redact(storage.url)} --field {known.name}"
    try:
        index = read_field_index(storage, known)
    except CorruptionError as error:
        found.problems.append((path, str(error)))
        return
    if found.problems:  # what it should say cannot be read
        return
    manifest = refresh(storage, manifest)
    known = refresh_field(storage, known, manifest)
    now = build_field_index(storage, known, manifest)
    gone = standing.retired_shards(manifest)
    listed, rows = (_counted_rows(table, gone) for table in (index, now))
    if listed - rows:
        found.problems.append((path, f"its counts differ from the sample tables. {fix}"))
    if len(rows) > len(listed):
        found.notes.append(f"the field {known.name} has committed shards that its snapshot lacks")
    counts = count_field(known, manifest, now, standing)
    if missing := counts.num_shards - counts.num_committed:
        found.notes.append(
            f"{missing} of {counts.num_shards} shards of the field {known.name} are still to be encoded"
        )


def _counted_rows(index: pa.Table, gone: Collection[ShardId]) -> set[str]:
    """Return rows of a snapshot as texts, but those of shards that are gone, or that `clean` may remove."""
    return {json.dumps(row) for row in index.to_pylist() if part_of(row).shard not in gone}


def behind_notes(
    storage: Storage, standing: Standing, checked: Sequence[FieldFindings]
) -> list[str]:
    """Return which fields lack values, or have some of former captions or files.

    Nothing where that cannot be told: problems say why. standing: as `FieldCounter` takes it.
    """
    names = [found.name for found in checked if found.manifest is not None]
    if not names:
        return []
    with contextlib.suppress(CorruptionError):
        manifest = read_manifest(storage)
        index = current_index(storage, manifest)
        behind = FieldCounter(storage).behind(manifest, standing, index, names)
        return [f"the field {line}" for line in behind_lines(behind, redact(storage.url))]
    return []


def write_derived_fields(storage: Storage, manifest: Manifest, found: FieldFindings) -> None:
    """Write damaged sample tables again from their objects, whose copies of them are sound.

    The snapshot says their sizes, which may be others now. Where another table of it is damaged, it stays
    as it is: the field's next run publishes it.
    """
    known, shard_format = found.manifest, get_format(manifest.format)
    if known is None or not found.derived:
        return
    for part in found.derived:
        layout = known.layouts(manifest, part.version, part.shard.bucket)[0]
        data = read_object(storage, shard_format, layout, part.shard.number)
        if data is not None:
            derived = derive_field_table(storage, shard_format, known, layout, part.shard, data)
            storage.write(field_sample_path(known.name, *part), derived)
    with contextlib.suppress(CorruptionError):
        publish_field(storage, known, manifest, set(found.derived))
