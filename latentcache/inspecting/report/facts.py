"""Facts of a cache for its report: progress, failures, sizes and times, from one pass over its tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.dtypes import Array
from latentcache.core.records import REASONS, Bucket
from latentcache.core.spec import ITEM_BYTES
from latentcache.format.changes import read_changes
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import read_rejected
from latentcache.format.samples import read_samples
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.snapshot import current_index, shard_of
from latentcache.inspecting.field_counts import CountedField, FieldCounter
from latentcache.inspecting.watch import LogReader, shard_workers
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Sample tables read concurrently: they are small, so overlapping requests hide the latency.
NUM_THREADS = 16
#: Failed clips named per reason.
EXAMPLES = 5
#: Decoders, or workers, whose times are shown by name; those of all further ones are added up. A
#: stranger's cache can name as many as it has rows.
MAX_GROUPS = 1000
OTHERS = "others"
#: Edges of the bins in which times are counted: from a millisecond to about an hour, eight per decade.
TIME_EDGES_S: Array = np.logspace(-3, 3.5, 53)
STAGES = ("decode_s", "encode_s")
#: Columns by whose values times are shown separately.
GROUPS = ("decoder",)
_FAILED_COLUMNS = ("key", "reason", "message")
_NEEDED = [
    *(*_FAILED_COLUMNS, "status", "length", "start_s", "end_s"),
    *("tiling_error", "psnr", *GROUPS, *STAGES),
]


@dataclass(kw_only=True)
class Failures:
    """Clips or sources that failed for one reason. examples: (key, message) of a few of them."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Failures) -> None:
        """Count more of them."""
        self.count += other.count
        self.examples = (self.examples + other.examples)[:EXAMPLES]


@dataclass(kw_only=True)
class Times:
    """Times of clips: their number, seconds by stage, and how many fall into each bin of TIME_EDGES_S."""

    num_clips: int = 0
    total_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    bins: dict[str, Array] = field(
        default_factory=lambda: {s: np.zeros(len(TIME_EDGES_S) - 1, np.int64) for s in STAGES}
    )

    def add(self, other: Times) -> None:
        """Count more clips."""
        self.num_clips += other.num_clips
        for stage in STAGES:
            self.total_s[stage] += other.total_s[stage]
            self.bins[stage] = self.bins[stage] + other.bins[stage]


@dataclass(kw_only=True)
class BucketFacts:
    """What is planned, not retired, and committed of a bucket. duration_s: of the ok clips' sources."""

    bucket: Bucket
    planned_clips: int
    planned_shards: int
    raw_clip_bytes: int
    committed_shards: int = 0
    num_ok: int = 0
    num_failed: int = 0
    stored_bytes: int = 0
    duration_s: float = 0.0

    @property
    def num_frames(self) -> int:
        """Pixel frames of the ok clips."""
        return self.num_ok * self.bucket.frames

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the ok clips' pixels, uint8 RGB."""
        return 3 * self.num_frames * self.bucket.height * self.bucket.width

    @property
    def raw_bytes(self) -> int:
        """Bytes of the ok clips' latents before compression."""
        return self.num_ok * self.raw_clip_bytes


@dataclass(kw_only=True)
class Facts:
    """What the sample tables say.

    times: of ok clips; groups: the same by decoder, and by worker if logs say which one encoded a shard.
    failures and rejected (sources): by reason. index: the snapshot of what is committed, INDEX_SCHEMA.
    """

    buckets: list[BucketFacts]
    failures: dict[str, Failures] = field(default_factory=dict)
    rejected: dict[str, Failures] = field(default_factory=dict)
    times: Times = field(default_factory=Times)
    groups: dict[str, dict[str, Times]] = field(default_factory=dict)
    tiling_errors: list[float] = field(default_factory=list)
    psnrs_db: list[float] = field(default_factory=list)
    index: pa.Table = field(default_factory=INDEX_SCHEMA.empty_table)
    fields: list[CountedField] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What one sample table says."""

    num_clips: int
    num_ok: int
    stored_bytes: int
    duration_s: float
    failures: dict[str, Failures]
    times: Times
    groups: dict[str, dict[str, Times]]
    tiling_errors: list[float]
    psnrs_db: list[float]


def read_facts(
    storage: Storage, manifest: Manifest, on_table: Callable[[], object] = lambda: None
) -> Facts:
    """Read all current sample tables; `on_table` is called after each.

    Raises CorruptionError for a table that cannot be read.
    """
    facts = Facts(buckets=[], index=current_index(storage, manifest))
    workers = shard_workers(LogReader(storage).runs())
    standing = read_changes(storage, manifest).planned()
    retired = standing.retired_shards(manifest)
    retired_shards = Counter(shard.bucket for shard in retired)
    retired_rows = Counter[str]()
    for shard, rows_of_shard in standing.retired.items():
        retired_rows[shard.bucket] += len(rows_of_shard)
    places = _places(facts.index["bucket"])
    for info in manifest.buckets:
        bucket = BucketFacts(
            bucket=Bucket.parse(info.name),
            planned_clips=info.num_clips - retired_rows[info.name],
            planned_shards=info.num_shards - retired_shards[info.name],
            raw_clip_bytes=math.prod(info.shape) * ITEM_BYTES[manifest.spec.dtype],
        )
        if not bucket.planned_clips:
            continue
        facts.buckets.append(bucket)
        rows = facts.index.take(places.get(info.name, np.zeros(0, np.int64))).to_pylist()
        rows = [row for row in rows if shard_of(row) not in retired]
        for row, found in _read_shards(storage, manifest, rows):
            _add(facts, bucket, found)
            if worker := workers.get(shard_of(row)):
                _add_times(facts, "worker", worker, found.times)
            on_table()
    _merge(facts.rejected, _failures(read_rejected(storage, manifest)))
    facts.fields = FieldCounter(storage).count(manifest, standing, facts.index)
    return facts


def _places(buckets: pa.ChunkedArray) -> dict[str, Array]:
    """Return the rows of each bucket."""
    names = buckets.combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(1, len(names.dictionary)))
    parts = np.split(order, ends) if len(names.dictionary) else []
    return dict(zip(names.dictionary.to_pylist(), parts, strict=True))


def _add(facts: Facts, bucket: BucketFacts, shard: ShardFacts) -> None:
    bucket.committed_shards += 1
    bucket.num_ok += shard.num_ok
    bucket.num_failed += shard.num_clips - shard.num_ok
    bucket.stored_bytes += shard.stored_bytes
    bucket.duration_s += shard.duration_s
    _merge(facts.failures, shard.failures)
    facts.times.add(shard.times)
    facts.tiling_errors += shard.tiling_errors
    facts.psnrs_db += shard.psnrs_db
    for column, groups in shard.groups.items():
        for name, times in groups.items():
            _add_times(facts, column, name, times)


def _add_times(facts: Facts, column: str, name: str, times: Times) -> None:
    groups = facts.groups.setdefault(column, {})
    known = name in groups or len(groups) < MAX_GROUPS
    groups.setdefault(name if known else OTHERS, Times()).add(times)


def _merge(total: dict[str, Failures], more: dict[str, Failures]) -> None:
    for reason, failures in more.items():
        total.setdefault(reason, Failures()).add(failures)


def _read_shards(
    storage: Storage, manifest: Manifest, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], ShardFacts]]:
    """Yield rows of the snapshot, with what the shards' tables say."""

    def read(row: Mapping[str, Any]) -> ShardFacts:
        return summarise(read_samples(storage, manifest.fingerprint, row, _NEEDED))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from zip(rows, pool.map(read, rows), strict=True)


def summarise(table: pa.Table) -> ShardFacts:
    """Return what the rows of a shard say."""
    ok = table.filter(pc.equal(table["status"], "ok"))
    seconds = pc.sum(pc.subtract(ok["end_s"], ok["start_s"])).as_py()
    errors, psnrs_db = (ok[name].drop_null().to_pylist() for name in ("tiling_error", "psnr"))
    return ShardFacts(
        num_clips=len(table),
        num_ok=len(ok),
        stored_bytes=pc.sum(ok["length"]).as_py() or 0,
        duration_s=seconds or 0.0,
        failures=_failures(table.filter(pc.not_equal(table["status"], "ok"))),
        times=_times(ok),
        groups={name: _times_by(ok, name) for name in GROUPS},
        tiling_errors=errors,
        psnrs_db=psnrs_db,
    )


def _failures(failed: pa.Table) -> dict[str, Failures]:
    found: dict[str, Failures] = {}
    for row in failed.select(_FAILED_COLUMNS).to_pylist():
        one = Failures(count=1, examples=[(row["key"], redact(row["message"] or ""))])
        reason = row["reason"] if row["reason"] in REASONS else "unknown"
        found.setdefault(reason, Failures()).add(one)
    return found


def _times(ok: pa.Table) -> Times:
    times = Times(num_clips=len(ok))
    for stage in STAGES:
        seconds = ok[stage].drop_null().to_numpy()
        times.total_s[stage] = float(seconds.sum())
        inside = np.clip(seconds, TIME_EDGES_S[0], TIME_EDGES_S[-1])
        times.bins[stage] = np.histogram(inside, TIME_EDGES_S)[0]
    return times


def _times_by(ok: pa.Table, column: str) -> dict[str, Times]:
    ok = ok.select([column, *STAGES])  # texts may be long, and are not looked at
    names = pc.unique(ok[column].drop_null())
    found = {
        name: _times(ok.filter(pc.equal(ok[column], name)))
        for name in names[:MAX_GROUPS].to_pylist()
    }
    if len(names) > MAX_GROUPS:
        found[OTHERS] = _times(ok.filter(pc.is_in(ok[column], value_set=names[MAX_GROUPS:])))
    return found
