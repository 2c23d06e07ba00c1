"""Looks at a cache from anywhere, repeatedly, and reads only what is new each time.

A look costs `cache.json`, a listing of generations, of `logs/` and of every bucket's sample tables (a
request per 1,000 objects), the snapshot, log segments that have grown (a run of 10 million clips logs
about 100 MB), and some sample tables: those of shards that are committed but neither in the snapshot nor
in a log, or whose failures no log explains; and, once, those of shards whose captions a field lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import REASONS, ShardId
from latentcache.corpus.saved_probes import FLUSH_INTERVAL_S, saved_tables
from latentcache.errors import CacheError
from latentcache.format.changes import read_changes, without_rows
from latentcache.format.manifest import Manifest, read_cache_json, read_manifest, refresh
from latentcache.format.paths import CACHE_JSON, GENERATIONS, sample_path
from latentcache.format.planned_sources import read_rejected
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.snapshot import build_index, known_index, shard_of, standing_of
from latentcache.format.tables import read_table
from latentcache.inspecting.field_counts import FieldCounter, behind_of
from latentcache.inspecting.status import Planned, Status, assess, read_run
from latentcache.running import log_lines
from latentcache.running.log_lines import LogEvent, is_quiet, parse_segment, read_line
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

NUM_THREADS = 16
#: The largest log segment. A new one begins beyond SEGMENT_BYTES; what two writes hold comes on top.
MAX_SEGMENT_BYTES = 64 << 20
#: Sample tables that a look reads only for the reasons of failures.
EXPLAINED_SHARDS = 256


class LogReader:
    """The logs of a cache. A segment that has not grown is read once, and quiet lines are parsed late."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._segments: dict[str, tuple[int, list[LogEvent | bytes]]] = {}
        self._of_latents: list[str] = []

    def runs(self) -> dict[str, list[LogEvent]]:
        """Return what every run of latents has logged so far, by its name and in order."""
        return self._runs(parsed)

    def loud_runs(self) -> dict[str, list[LogEvent]]:
        """Return `runs` without shards that were committed without a failed clip, nearly all of a log."""
        return self._runs(lambda lines: [line for line in lines if isinstance(line, LogEvent)])

    def commits(self, shards: Iterable[ShardId]) -> dict[ShardId, Mapping[str, Any]]:
        """Return what was last logged of shards that lost no clip, as far as `runs` has been read.

        The latest lines are looked at first, and no more of them than it takes.
        """
        left, found = set(shards), dict[ShardId, Mapping[str, Any]]()
        for name in reversed(self._of_latents) if left else ():
            for line in reversed(self._segments[name][1]):
                if not left:
                    return found
                event = line if isinstance(line, LogEvent) else read_line(line)
                if event and event.name == log_lines.SHARD_COMMITTED and _is_place(event.facts):
                    shard = _shard_of(event.facts)
                    if shard in left:
                        left.remove(shard)
                        found[shard] = event.facts
        return found

    def _runs(
        self, events_of: Callable[[Sequence[LogEvent | bytes]], list[LogEvent]]
    ) -> dict[str, list[LogEvent]]:
        sizes = self._storage.list(log_lines.LOGS)
        named = sorted((shard, name) for name in sizes if (shard := parse_segment(name)))
        grown = [n for _, n in named if self._segments.get(n, (None,))[0] != sizes[n]]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for name, found in zip(grown, pool.map(self._read, grown), strict=True):
                self._segments[name] = (sizes[name], found)
        runs: dict[str, list[LogEvent]] = {}
        for (run, _), name in named:
            runs.setdefault(run, []).extend(events_of(self._segments[name][1]))
        runs = {run: log for run, log in runs.items() if log and not log_lines.field_of(log)}
        self._of_latents = [name for (run, _), name in named if run in runs]
        return runs

    def _read(self, name: str) -> list[LogEvent | bytes]:
        try:
            path = f"{log_lines.LOGS}/{name}"
            data = self._storage.read_ranges(path, [(0, MAX_SEGMENT_BYTES)])[0]
        except FileNotFoundError:  # removed since it was listed
            return []
        lines = (line if is_quiet(line) else read_line(line) for line in data.splitlines())
        return [line for line in lines if line is not None]


def parsed(lines: Iterable[LogEvent | bytes]) -> list[LogEvent]:
    """Return the events of lines, some of which are not parsed yet."""
    events = (line if isinstance(line, LogEvent) else read_line(line) for line in lines)
    return [event for event in events if event is not None]


def is_about_to_be(storage: Storage) -> bool:
    """Tell whether a cache may still come here: nothing is planned yet. Raises CorruptionError."""
    if storage.list(GENERATIONS):
        return False
    if storage.exists(CACHE_JSON):
        read_cache_json(storage)
    return True


def shard_workers(runs: Mapping[str, Iterable[LogEvent]]) -> dict[ShardId, str]:
    """Return the names of the workers that encoded shards, as far as logs say; the last of several."""
    found: dict[ShardId, str] = {}
    for event in _commits(runs):
        shard, worker = _shard_of(event.facts), log_lines.text(event.facts, "worker")
        if worker:
            found[shard] = worker
    return found


class Watch:
    """Looks at one cache. Raises CacheError if there is none."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        try:
            manifest = read_manifest(storage)
        except CacheError:
            if num_tables := len(saved_tables(storage)):
                raise CacheError(_being_probed(storage, num_tables)) from None
            raise
        self._logs, self._fields = LogReader(storage), FieldCounter(storage)
        self._index = INDEX_SCHEMA.empty_table()
        self._tables: dict[tuple[ShardId, frozenset[int]], dict[str, int]] = {}
        self._take(manifest)

    def _take(self, manifest: Manifest) -> None:
        """Take in what is planned."""
        self.manifest = manifest
        self._changes = read_changes(self._storage, manifest)
        self._planned = Planned(
            num_shards=manifest.num_shards,
            num_clips=manifest.num_clips,
            rejected=read_rejected(self._storage, manifest).num_rows,
        )

    def _refresh(self) -> None:
        """Take in what was planned since the last look. Raises CacheError if the cache is gone."""
        if read_cache_json(self._storage).fingerprint != self.manifest.fingerprint:
            url = redact(self._storage.url)
            raise CacheError(f"{url}: another cache is here now than when it was looked at first")
        manifest = refresh(self._storage, self.manifest)
        if len(manifest.generations) > len(self.manifest.generations):
            self._take(manifest)

    def look(self, now_s: float) -> Status:
        """Return how far the cache is. now_s: since the epoch. Raises CacheError if it is gone."""
        self._refresh()
        runs = self._logs.loud_runs()
        known = pa.concat_tables([known_index(self._storage, self.manifest), self._index])
        self._index = build_index(self._storage, self.manifest, known, self._logged)
        facts = [read_run(name, log) for name, log in runs.items()]
        standing = standing_of(self._changes, self._index)
        num_shards = self.manifest.num_shards - len(standing.retired_shards(self.manifest))
        planned = replace(self._planned, num_shards=num_shards)
        status = assess(planned, self._index, facts, self._reasons(runs), now_s)
        fields = self._fields.count(self.manifest, self._changes.planned(), self._index)
        return replace(
            status,
            fields={found.field.name: found.counts for found in fields},
            behind=behind_of(fields),
        )

    def _logged(self, shards: Sequence[ShardId]) -> list[dict[str, Any]]:
        """Return rows of shards that the snapshot lacks, as far as logs tell: no table is read then."""
        commits = self._logs.commits(shards).values()
        return [row for facts in commits if (row := self._row(facts))]

    def _row(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the snapshot's row of a logged commit; None if its numbers are impossible."""
        row: dict[str, Any] = {name: facts.get(name) for name in INDEX_SCHEMA.names}
        clips, ok = row["num_clips"], row["num_ok"]
        sizes = row["stored_bytes"], row["table_bytes"]
        whole = all(type(value) is int for value in (clips, ok, *sizes))
        sound = (
            whole
            and 0 <= ok <= clips <= self.manifest.shard_clips
            and all(0 <= size < 1 << 53 for size in sizes)
        )
        return row if sound else None

    def _reasons(self, runs: Mapping[str, Iterable[LogEvent]]) -> dict[ShardId, Mapping[str, int]]:
        """Return why clips failed, by shard: from the logs, or else from the first sample tables."""
        commits = {_shard_of(event.facts): event.facts for event in _commits(runs)}
        found: dict[ShardId, Mapping[str, int]] = {}
        unexplained = []
        has_failed = pc.less(self._index["num_ok"], self._index["num_clips"])
        for row in self._index.filter(has_failed).to_pylist():
            shard, failed = shard_of(row), row["num_clips"] - row["num_ok"]
            logged = _logged_reasons(commits.get(shard, {}))
            if sum(logged.values()) == failed:
                found[shard] = logged
            else:
                unexplained.append((row["num_ok"] > 0, shard, frozenset(row["retired"] or ())))
        # Shards without a good clip come first: they may have been given up.
        unexplained.sort(key=lambda entry: entry[:2])
        found.update(self._read_reasons([(shard, retired) for _, shard, retired in unexplained]))
        return found

    def _read_reasons(
        self, wanted: list[tuple[ShardId, frozenset[int]]]
    ) -> Iterator[tuple[ShardId, Mapping[str, int]]]:
        fresh = [key for key in wanted if key not in self._tables][:EXPLAINED_SHARDS]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            read = pool.map(lambda key: _count_reasons(self._storage, *key), fresh)
            self._tables.update(zip(fresh, read, strict=True))
        return ((key[0], self._tables[key]) for key in wanted if key in self._tables)


def _commits(runs: Mapping[str, Iterable[LogEvent]]) -> Iterator[LogEvent]:
    """Yield the events of committed shards in the order of time."""
    found = (event for log in runs.values() for event in log)
    commits = (event for event in found if event.name == log_lines.SHARD_COMMITTED)
    named = (event for event in commits if _is_place(event.facts))
    yield from sorted(named, key=lambda event: event.time_s)


def _is_place(facts: Mapping[str, Any]) -> bool:
    return isinstance(facts.get("bucket"), str) and type(facts.get("shard")) is int


def _being_probed(storage: Storage, num_tables: int) -> str:
    return (
        f"{redact(storage.url)}: a corpus is being probed for this cache, or a run was stopped during "
        f"that: {num_tables} tables of what was found, one more every {FLUSH_INTERVAL_S:.0f} s. There is "
        "nothing to show until it is planned. Look again, or continue with the same precompute."
    )


def _shard_of(row: Mapping[str, Any]) -> ShardId:
    return ShardId(row["bucket"], row["shard"])


def _logged_reasons(facts: Mapping[str, Any]) -> dict[str, int]:
    reasons = facts.get("reasons")
    if not isinstance(reasons, dict):
        return {}
    return {name: log_lines.count(reasons, name) for name in reasons if name in REASONS}


def _count_reasons(storage: Storage, shard: ShardId, retired: frozenset[int]) -> dict[str, int]:
    """Count the failures of a sample table's rows that count; none if the table is not there."""
    try:
        table = read_table(storage, sample_path(*shard), ["row", "reason"])
    except FileNotFoundError:
        return {}
    counts = without_rows(table, retired)["reason"].drop_null().value_counts()
    return {row["values"]: row["counts"] for row in counts.to_pylist()}
