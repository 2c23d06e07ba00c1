"""Verify: every object of a cache is read once and compared with what the others say about it.

Tables, cache.json and Zarr's metadata carry their own CRC32C. A shard object's CRC32C is in its sample
table, beside those of its clips. So a flipped byte is found wherever it is. Logs are not read: they hold
nothing of the latents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from latentcache.core.records import ShardId
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.changes import Changes, Standing, read_changes
from latentcache.format.commit import derive_table, read_object
from latentcache.format.damage import advice
from latentcache.format.generations import Generation, digest_of, require
from latentcache.format.manifest import (
    Manifest,
    fingerprint,
    read_cache_json,
    read_manifest,
    refresh,
)
from latentcache.format.paths import (
    CACHE_JSON,
    GENERATIONS,
    INDEX,
    QUANTISER,
    columns_index_path,
    generation_path,
    sample_path,
)
from latentcache.format.quantiser import read_quantiser_bytes
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.snapshot import (
    Row,
    check_index,
    committed_places,
    generation_of,
    index_rows,
    read_index,
    shard_of,
    standing_of,
    summarise,
)
from latentcache.format.tables import read_bounded, read_table
from latentcache.inspecting.array_metadata import metadata_problem
from latentcache.inspecting.field_check import (
    FieldFindings,
    behind_notes,
    check_fields,
    write_derived_fields,
)
from latentcache.inspecting.shard_check import ShardCheck, check_shard
from latentcache.inspecting.uncommitted import uncommitted_problem, uncommitted_shards
from latentcache.planning.planned import PlanReader
from latentcache.planning.step import tables_of
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Bounds on shard objects in memory at a time: their bytes together, and their number.
MEMORY_BYTES = 1 << 30
NUM_THREADS = 8
#: Shards that are submitted at a time.
WINDOW = 1024

T = TypeVar("T")
#: A shard and its rows of the plan, None if those cannot be read.
Planned = tuple[ShardId, pa.Table | None]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An object that is not what it should be. is_repairable: `repair` puts it right, or plans it again."""

    path: str
    what: str
    is_repairable: bool = False


@dataclass(kw_only=True)
class Findings:
    """What verifying found. notes: what is no fault, such as shards that are still to be encoded.

    damaged: rows of committed shards to encode again; derived: shards whose sample tables are to be
    written again from their objects. sound: shards without a problem. fields: the same of each field.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: dict[ShardId, set[int]] = field(default_factory=dict)
    derived: list[ShardId] = field(default_factory=list)
    sound: list[ShardId] = field(default_factory=list)
    fields: list[FieldFindings] = field(default_factory=list)
    num_clips: int = 0
    num_bytes: int = 0

    def add(self, path: str, what: str, *, is_repairable: bool = False) -> None:
        """Add a problem."""
        self.problems.append(Problem(path=path, what=what, is_repairable=is_repairable))


def verify(
    storage: Storage,
    on_start: Callable[[int], object] = lambda _: None,
    on_shard: Callable[[], object] = lambda: None,
) -> Findings:
    """Check everything in a cache. Raises CacheError if there is none, or one of a newer version.

    on_start is called with the number of committed shards, on_shard after each.
    """
    findings = Findings()
    manifest = _read_manifest(storage, findings)
    if manifest is None:
        return findings
    reader = _check_planned(storage, manifest, findings)
    changes = _read_changes(storage, manifest, findings)
    there = committed_places(storage, manifest)
    standing = changes.among(set(there))
    found = _that_count(manifest, there, standing)
    on_start(sum(map(len, found.values())))
    rows: dict[ShardId, Row | None] = {}
    for name, numbers in found.items():
        shards = [ShardId(name, number) for number in numbers]
        for check in _check_shards(storage, manifest, standing, name, shards, reader):
            _take(findings, check, standing)
            rows[check.shard] = _row_of(check, standing)
            on_shard()
    _check_uncommitted(
        storage, manifest, {*there, *standing.retired_shards(manifest)}, reader, findings
    )
    _check_snapshot(storage, manifest, findings, rows)
    _note_missing(manifest, standing, findings, found)
    for of_field in check_fields(storage, manifest, changes.planned()):
        findings.fields.append(of_field)
        findings.notes += of_field.notes
        repairable = bool(of_field.damaged or of_field.derived)
        for path, what in of_field.problems:
            findings.add(path, what, is_repairable=repairable)
    findings.notes += behind_notes(storage, changes.planned(), findings.fields)
    return findings


def write_derived(storage: Storage, findings: Findings) -> None:
    """Write damaged sample tables again from their objects, whose copies of them are sound.

    To be done before damaged clips are planned again: the snapshot after that is made of the tables.
    """
    manifest = read_manifest(storage)
    shard_format = get_format(manifest.format)
    for shard in findings.derived:
        layout = manifest.layouts()[shard.bucket]
        data = read_object(storage, shard_format, layout, shard.number)
        if data is not None:
            table = derive_table(shard_format, layout, data, manifest.fingerprint)
            storage.write(sample_path(*shard), table)
    for of_field in findings.fields:
        write_derived_fields(storage, manifest, of_field)


def _read_manifest(storage: Storage, findings: Findings) -> Manifest | None:
    try:
        manifest = read_cache_json(storage)
    except CorruptionError as error:
        findings.add(CACHE_JSON, str(error))
        return None
    except CacheError as error:
        if not storage.exists(CACHE_JSON) or _is_sealed(storage, CACHE_JSON):
            raise
        findings.add(CACHE_JSON, str(error))
        return None
    if fingerprint(manifest.recipe) != manifest.fingerprint:
        findings.add(CACHE_JSON, "its fingerprint is not that of its recipe")
    try:
        manifest = refresh(storage, manifest)
    except CorruptionError as error:
        findings.add(_generation_in(storage, str(error)), str(error))
        return None
    require(storage, manifest.generations)
    return manifest


def _generation_in(storage: Storage, message: str) -> str:
    """Return the path of the generation that an error is of, or of them all."""
    paths = (f"{GENERATIONS}/{name}" for name in sorted(storage.list(GENERATIONS)))
    return next((path for path in paths if path in message), f"{GENERATIONS}/")


def _read_changes(storage: Storage, manifest: Manifest, findings: Findings) -> Changes:
    try:
        return read_changes(storage, manifest)
    except CorruptionError as error:
        findings.add("retired/", str(error))
        return Changes()


def _is_sealed(storage: Storage, path: str) -> bool:
    try:
        checksum.check(read_bounded(storage, path))
    except (ValueError, FileNotFoundError):
        return False
    return True


def _check_planned(storage: Storage, manifest: Manifest, findings: Findings) -> PlanReader:
    """Check what planning wrote: the arrays' metadata, and every generation's tables."""
    layouts = list(manifest.layouts().values())
    for path, expected in get_format(manifest.format).metadata(layouts).items():
        if what := metadata_problem(storage, path, expected, CACHE_JSON):
            findings.add(path, f"{what}. {advice(redact(storage.url), path)}")
    if manifest.quantiser_sha256 is not None:
        try:
            read_quantiser_bytes(storage, manifest)
        except CorruptionError as error:
            findings.add(QUANTISER, str(error))
    for generation in manifest.generations:
        _check_tables(storage, generation, findings)
    return PlanReader(storage, manifest)


def _check_tables(storage: Storage, generation: Generation, findings: Findings) -> None:
    """Check a generation's tables one by one, then that they are those it was written with."""
    shards: list[ShardId] = []
    if generation.num_relabelled:
        listed = _read(storage, columns_index_path(generation.folder), findings)
        if listed is not None:
            shards = [ShardId(row["bucket"], row["shard"]) for row in listed.to_pylist()]
    found: dict[str, bytes] = {}
    before = len(findings.problems)
    for name, path in tables_of(generation, shards).items():
        if _read(storage, path, findings) is not None:
            found[name] = read_bounded(storage, path)
    if len(findings.problems) == before and digest_of(found) != generation.tables_sha256:
        path = generation_path(generation.number)
        text = "its tables are not those that it was written with (their SHA-256 differs)"
        findings.add(path, f"{text}. {advice(redact(storage.url), path)}")


def _read(storage: Storage, path: str, findings: Findings) -> pa.Table | None:
    try:
        return read_table(storage, path)
    except FileNotFoundError:
        findings.add(path, f"it is missing. {advice(redact(storage.url), path)}")
    except CorruptionError as error:
        findings.add(path, str(error))
    return None


def _that_count(
    manifest: Manifest, there: Sequence[ShardId], standing: Standing
) -> dict[str, list[int]]:
    """Return the committed shards that have rows that count, by bucket and in order."""
    retired = standing.retired_shards(manifest)
    found: dict[str, list[int]] = {bucket.name: [] for bucket in manifest.buckets}
    for shard in there:
        if shard not in retired:
            found[shard.bucket].append(shard.number)
    return found


def _check_shards(
    storage: Storage,
    manifest: Manifest,
    standing: Standing,
    bucket: str,
    shards: Sequence[ShardId],
    reader: PlanReader,
) -> Iterator[ShardCheck]:
    layout = manifest.layouts()[bucket]

    def check(item: Planned) -> ShardCheck:
        retired = standing.rows(item[0])
        found = check_shard(storage, manifest, layout, *item, retired)
        # Once more, in case the fault was on the way here.
        return check_shard(storage, manifest, layout, *item, retired) if found.problems else found

    return _in_threads(check, layout, shards, reader)


def _in_threads(
    check: Callable[[Planned], T],
    layout: ArrayLayout,
    shards: Iterable[ShardId],
    reader: PlanReader,
) -> Iterator[T]:
    """Check shards of a bucket in several threads, as many as there is memory for; yields in order."""
    threads = max(1, min(NUM_THREADS, MEMORY_BYTES // _shard_bytes(layout)))
    with ThreadPoolExecutor(threads) as pool:
        waiting = ((shard, _planned(reader, shard)) for shard in shards)
        while window := list(itertools.islice(waiting, WINDOW)):
            yield from pool.map(check, window)


def _check_uncommitted(
    storage: Storage,
    manifest: Manifest,
    others: Collection[ShardId],
    reader: PlanReader,
    findings: Findings,
) -> None:
    """Look for objects without a sample table that would stop a run. others: shards that are left out."""

    def check(item: Planned) -> tuple[ShardId, str | None]:
        return item[0], uncommitted_problem(storage, manifest, *item)

    left = uncommitted_shards(storage, manifest, others)
    for bucket, shards in itertools.groupby(left, key=lambda shard: shard.bucket):
        layout = manifest.layouts()[bucket]
        for shard, what in _in_threads(check, layout, shards, reader):
            if what is None:
                continue
            path = get_format(manifest.format).path(layout, shard.number)
            text = f"{what}; its sample table is not there, and a run that comes to it stops"
            findings.add(path, text, is_repairable=True)
            findings.damaged[shard] = set(range(manifest.num_rows(shard)))


def _planned(reader: PlanReader, shard: ShardId) -> pa.Table | None:
    try:
        return reader.table(shard)
    except CacheError:
        return None


def _shard_bytes(layout: ArrayLayout) -> int:
    rows = min(layout.shard_rows, layout.num_rows)
    return rows * math.prod(layout.shape) * ITEM_BYTES[layout.dtype]


def _take(findings: Findings, check: ShardCheck, standing: Standing) -> None:
    for path, what in check.problems:
        findings.add(path, what, is_repairable=True)
    if damaged := check.rows - set(standing.rows(check.shard)):
        findings.damaged[check.shard] = damaged
    if check.is_derived:  # also where clips are damaged, for the others' rows are read from it
        findings.derived.append(check.shard)
    findings.num_clips += check.num_clips
    findings.num_bytes += check.num_bytes
    if not check.problems:
        findings.sound.append(check.shard)


def _row_of(check: ShardCheck, standing: Standing) -> Row | None:
    """Return what the snapshot should say of a shard; None if its sample table is damaged."""
    if check.outcomes is None:
        return None
    return summarise(check.outcomes, check.shard, check.table_bytes, standing)


def _check_snapshot(
    storage: Storage,
    manifest: Manifest,
    findings: Findings,
    rows: Mapping[ShardId, Row | None],
) -> None:
    """Compare the snapshot with the committed shards. rows: what it should say of those that count.

    Other runs may plan, commit and publish all the while. So the snapshot is read first, and compared
    with the generations and shards that are there after it: what it lists was there before it.
    """
    try:
        table = read_index(storage)
    except CorruptionError as error:
        findings.add(INDEX, str(error), is_repairable=True)
        return
    except CacheError as error:
        findings.notes.append(str(error))
        return
    manifest = refresh(storage, manifest)
    try:
        check_index(table, manifest)
    except ValueError as error:
        fix = advice(redact(storage.url), INDEX)
        findings.add(INDEX, f"{error}. {fix}", is_repairable=True)
        return
    every = {shard_of(row): row for row in table.to_pylist()}
    # Retired ones, too: readers would look for them.
    gone = sorted(every.keys() - set(committed_places(storage, manifest)))
    unlisted, wrong = rows.keys() - every.keys(), []
    if not findings.problems:  # else what the rows should say cannot be read
        at = manifest.at(generation_of(table))
        standing = standing_of(read_changes(storage, at), table)
        sound = {shard: rows[shard] for shard in every.keys() & rows.keys()}
        expected = index_rows(storage, at, standing, sound)
        wrong = sorted(s for row in expected.to_pylist() if every[s := shard_of(row)] != row)
        unlisted -= standing.retired_shards(at)
    for shards, what in (
        (gone, "without a sample table"),
        (wrong, "whose counts differ from their sample tables"),
    ):
        if shards:
            text = f"it lists {len(shards)} shards {what}, such as {shards[0].name}"
            fix = f"Write it again: `latentcache verify {redact(storage.url)} --repair`."
            findings.add(INDEX, f"{text}. {fix}", is_repairable=True)
    if unlisted:
        findings.notes.append(f"{len(unlisted)} committed shards are not in the snapshot yet")


def _note_missing(
    manifest: Manifest,
    standing: Standing,
    findings: Findings,
    found: Mapping[str, Sequence[int]],
) -> None:
    planned = manifest.num_shards - len(standing.retired_shards(manifest))
    if missing := planned - sum(map(len, found.values())):
        findings.notes.append(f"{missing} of {planned} shards are still to be encoded")
