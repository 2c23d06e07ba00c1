"""Verify: every object of a cache is read once and compared with what the others say about it.

Tables, cache.json and Zarr's metadata carry their own CRC32C. A shard object's CRC32C is in its sample
table, beside those of its clips. So a flipped byte is found wherever it is. Logs are not read: they hold
nothing of the latents.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from latentcache.core.records import Bucket, ShardId
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.damage import advice
from latentcache.format.manifest import Manifest, fingerprint, read_manifest
from latentcache.format.paths import (
    CACHE_JSON,
    INDEX,
    REJECTED,
    plan_path,
    sample_path,
    samples_folder,
    shard_of_sample_file,
)
from latentcache.format.schemas import INDEX_SCHEMA, check_plan
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.snapshot import check_index, publish, read_index
from latentcache.format.tables import read_bounded, read_table
from latentcache.inspecting.shard_check import ShardCheck, check_shard
from latentcache.planning.plan import Plan
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Bounds on shard objects in memory at a time: their bytes together, and their number.
MEMORY_BYTES = 1 << 30
NUM_THREADS = 8
#: Shards that are submitted at a time.
WINDOW = 1024


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An object that is not what it should be. shard: to encode again, if that repairs it."""

    path: str
    what: str
    shard: ShardId | None = None


@dataclass(kw_only=True)
class Findings:
    """What verifying found. notes: what is no fault, such as shards that are still to be encoded.

    sound: a row of the snapshot for every committed shard without a problem.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sound: list[Mapping[str, Any]] = field(default_factory=list)
    num_clips: int = 0
    num_bytes: int = 0

    @property
    def bad_shards(self) -> list[ShardId]:
        """Shards that encoding again repairs, in order."""
        return sorted({problem.shard for problem in self.problems if problem.shard})

    def add(self, path: str, what: str, shard: ShardId | None = None) -> None:
        """Add a problem."""
        self.problems.append(Problem(path=path, what=what, shard=shard))


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
    plans = _check_planned(storage, manifest, findings)
    found = {bucket.name: _committed(storage, manifest, bucket.name) for bucket in manifest.buckets}
    on_start(sum(map(len, found.values())))
    for name, shards in sorted(found.items()):
        for check in _check_shards(storage, manifest, name, shards, plans.get(name)):
            _take(findings, check)
            on_shard()
    _check_snapshot(storage, manifest, findings, found)
    _note_missing(manifest, findings, found)
    return findings


def repair(storage: Storage, findings: Findings) -> list[ShardId]:
    """Unpublish bad shards, then delete their sample tables; a resumed run encodes them again.

    In this order a reader that opens the cache in between never sees a shard that is gone.
    """
    publish(storage, pa.Table.from_pylist(findings.sound, schema=INDEX_SCHEMA))
    for shard in findings.bad_shards:
        storage.delete(sample_path(*shard))
    return findings.bad_shards


def _read_manifest(storage: Storage, findings: Findings) -> Manifest | None:
    try:
        manifest = read_manifest(storage)
    except CorruptionError as error:
        findings.add(CACHE_JSON, str(error))
        return None
    except CacheError as error:
        if not storage.exists(CACHE_JSON) or _is_sealed(storage, CACHE_JSON):
            raise
        findings.add(CACHE_JSON, str(error))
        return None
    if fingerprint(manifest.recipe, manifest.plan_sha256) != manifest.fingerprint:
        findings.add(CACHE_JSON, "its fingerprint is not that of its recipe and plan")
    return manifest


def _is_sealed(storage: Storage, path: str) -> bool:
    try:
        checksum.check(read_bounded(storage, path))
    except (ValueError, FileNotFoundError):
        return False
    return True


def _check_planned(storage: Storage, manifest: Manifest, findings: Findings) -> dict[str, pa.Table]:
    """Check what the plan wrote; returns the readable plans, by bucket."""
    layouts = list(manifest.layouts().values())
    for path, expected in get_format(manifest.format).metadata(layouts).items():
        _check_metadata(storage, path, expected, findings)
    tables = {name: _read(storage, plan_path(name), findings) for name in manifest.layouts()}
    rejected = _read(storage, sample_path(REJECTED, 0), findings)
    plans = {name: table for name, table in tables.items() if table is not None}
    if rejected is None or len(plans) < len(tables):
        return plans
    buckets = {Bucket.parse(name): table for name, table in plans.items()}
    if Plan(buckets=buckets, rejected=rejected).digest() != manifest.plan_sha256:
        text = "the plans are not those that cache.json was written with (their SHA-256 differs)"
        findings.add("plan/", f"{text}. {advice(redact(storage.url), 'plan/')}")
    return {
        name: table
        for name, table in plans.items()
        if _is_plan(storage, manifest, name, table, findings)
    }


def _is_plan(
    storage: Storage, manifest: Manifest, bucket: str, table: pa.Table, findings: Findings
) -> bool:
    try:
        check_plan(table, manifest.fingerprint)
    except ValueError as error:
        path = plan_path(bucket)
        findings.add(
            path, f"it is not this cache's plan: {error}. {advice(redact(storage.url), path)}"
        )
        return False
    return True


def _check_metadata(storage: Storage, path: str, expected: bytes, findings: Findings) -> None:
    """Check a metadata object; other versions of Zarr's library may write other text."""
    fix = advice(redact(storage.url), path)
    try:
        data = read_bounded(storage, path)
        checksum.check(data)
        stored, wanted = json.loads(data), json.loads(expected)
    except FileNotFoundError:
        findings.add(path, f"it is missing. {fix}")
    except (ValueError, RecursionError) as error:
        findings.add(path, f"{error}. {fix}")
    else:
        names = ("node_type", "shape", "data_type")
        if any(stored.get(name) != wanted.get(name) for name in names):
            findings.add(path, f"it describes another array than cache.json. {fix}")


def _read(storage: Storage, path: str, findings: Findings) -> pa.Table | None:
    try:
        return read_table(storage, path)
    except FileNotFoundError:
        findings.add(path, f"it is missing. {advice(redact(storage.url), path)}")
    except CorruptionError as error:
        findings.add(path, str(error))
    return None


def _committed(storage: Storage, manifest: Manifest, bucket: str) -> list[int]:
    """Return the shards of the plan that have a sample table, in order."""
    names = storage.list(samples_folder(bucket))
    num_shards = next(b.num_shards for b in manifest.buckets if b.name == bucket)
    shards = (shard_of_sample_file(name) for name in names)
    return sorted(shard for shard in shards if shard is not None and shard < num_shards)


def _check_shards(
    storage: Storage, manifest: Manifest, bucket: str, shards: Sequence[int], plan: pa.Table | None
) -> Iterator[ShardCheck]:
    layout = manifest.layouts()[bucket]
    threads = max(1, min(NUM_THREADS, MEMORY_BYTES // _shard_bytes(layout)))

    def check(shard: int) -> ShardCheck:
        rows = manifest.shard_clips
        planned = None if plan is None else plan.slice(shard * rows, rows)
        found = check_shard(storage, manifest, layout, shard, planned)
        # Checked twice: a run may just have been writing the shard, or the transfer may have failed.
        return check_shard(storage, manifest, layout, shard, planned) if found.problems else found

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(shards)
        while window := list(itertools.islice(waiting, WINDOW)):
            yield from pool.map(check, window)


def _shard_bytes(layout: ArrayLayout) -> int:
    rows = min(layout.shard_rows, layout.num_rows)
    return rows * math.prod(layout.shape) * ITEM_BYTES[layout.dtype]


def _take(findings: Findings, check: ShardCheck) -> None:
    for path, what in check.problems:
        findings.add(path, what, check.shard)
    findings.notes += check.notes
    findings.num_clips += check.num_clips
    findings.num_bytes += check.num_bytes
    if check.summary is not None and not check.problems:
        findings.sound.append(check.summary)


def _check_snapshot(
    storage: Storage, manifest: Manifest, findings: Findings, found: Mapping[str, Sequence[int]]
) -> None:
    try:
        table = read_index(storage)
        check_index(table, manifest)
    except CorruptionError as error:
        findings.add(INDEX, str(error))
        return
    except CacheError as error:
        findings.notes.append(str(error))
        return
    except ValueError as error:
        findings.add(INDEX, f"{error}. {advice(redact(storage.url), INDEX)}")
        return
    listed = {(row["bucket"], row["shard"]): row for row in table.to_pylist()}
    sound = {(row["bucket"], row["shard"]): row for row in findings.sound}
    there = {(bucket, shard) for bucket, shards in found.items() for shard in shards}
    gone = sorted(listed.keys() - there)
    wrong = sorted(place for place in listed.keys() & sound if listed[place] != sound[place])
    for places, what in (
        (gone, "without a sample table"),
        (wrong, "whose counts differ from their sample tables"),
    ):
        if places:
            text = f"it lists {len(places)} shards {what}, such as {places[0][0]}/{places[0][1]}"
            findings.add(INDEX, f"{text}. {advice(redact(storage.url), INDEX)}")
    if unlisted := len(there - listed.keys()):
        findings.notes.append(f"{unlisted} committed shards are not in the snapshot yet")


def _note_missing(
    manifest: Manifest, findings: Findings, found: Mapping[str, Sequence[int]]
) -> None:
    planned = sum(bucket.num_shards for bucket in manifest.buckets)
    if missing := planned - sum(map(len, found.values())):
        findings.notes.append(f"{missing} of {planned} shards are still to be encoded")
