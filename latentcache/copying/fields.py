"""Fields of copied rows: each new shard gets the values that its clips have, as they are stored.

A copied row has the newest committed value of its original. If there is none, or if it is of another text
than the clip has now, the row is listed in a version of the field, so that the next run encodes it; until
then its value stays as it was. These versions are written before the shards, so that a run that is stopped
in between loses nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from latentcache.config.fields import stored_field
from latentcache.copying.field_rows import FieldSource, NewestRow
from latentcache.copying.parents import Parents
from latentcache.copying.shards import MEMORY_BYTES, NUM_THREADS, TIMES_IN_MEMORY
from latentcache.core.records import RETIRED, ClipId, Shard, ShardId
from latentcache.errors import CacheError, ConfigError, CorruptionError
from latentcache.format.fields.commit import Sample, adopt_field_shard, commit_field_shard
from latentcache.format.fields.manifest import (
    FieldManifest,
    create_version,
    field_names,
    read_field,
    refresh_field,
)
from latentcache.format.fields.snapshot import committed_parts, publish_field
from latentcache.format.generations import Parent
from latentcache.format.manifest import read_manifest
from latentcache.format.rounds import Rounds
from latentcache.format.shards.protocol import StoredChunk
from latentcache.planning.fields.planned import PlannedField, write_field_metadata
from latentcache.planning.planned import PlannedCache

#: Why a row has no value: the reason of a sample table.
NOT_COPIED = "not_copied"
#: Shards per thread whose rows are looked up at a time.
AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class FieldCopied:
    """What came of a field. num_owed: clips that the next run encodes; warnings: what was damaged."""

    name: str
    num_shards: int = 0
    num_owed: int = 0
    warnings: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Origin:
    source: FieldSource
    clip: ClipId
    newest: NewestRow


@dataclass(kw_only=True)
class _Work:
    """A shard to copy. origins: of the rows that have one; owed: rows that are to be encoded."""

    shard: Shard
    origins: Mapping[int, _Origin]
    owed: frozenset[int]
    warnings: list[str] = field(default_factory=list)


def copied_shards(planned: PlannedCache) -> list[ShardId]:
    """Return the shards whose rows are copies and count, committed or not, in order."""
    plan = planned.plan
    return [s for s in planned.planned_shards() if plan.origins(s) or plan.imports(s)]


def copy_fields(planned: PlannedCache, parents: Parents | None) -> Iterator[FieldCopied]:
    """Copy what a cache's fields lack of copied rows, and publish it; yield what came of each field.

    parents: the caches that a merged or copied one was made from; None: only its own rows are copied.

    Comes before the latents are copied, so that no clip is without its fields meanwhile. Raises
    StorageError.
    """
    shards = copied_shards(planned)
    for name in field_names(planned.storage) if shards else ():
        try:
            found = read_field(planned.storage, name, planned.manifest)
            if found.kind != "view":
                yield from _FieldCopier(planned, found, parents).copy(shards)
        except CacheError as error:
            yield FieldCopied(name=name, warnings=[f"the field {name} is not copied: {error}"])


class _FieldCopier:
    """Copies one field."""

    def __init__(
        self, planned: PlannedCache, found: FieldManifest, parents: Parents | None
    ) -> None:
        self._planned, self._field, self._parents = planned, found, parents
        self._own = FieldSource(planned, found)
        self._of_parents: dict[Parent, FieldSource | None] = {}

    def copy(self, shards: Sequence[ShardId]) -> Iterator[FieldCopied]:
        """Copy what is missing of some shards; yields nothing if nothing is."""
        storage, manifest, name = self._planned.storage, self._planned.manifest, self._field.name
        there = set(committed_parts(storage, self._field, manifest))
        missing = [shard for shard in shards if (1, shard) not in there]
        owed = {w.shard.id: w.owed for w in map(self._work, missing) if w.origins}
        if not owed:
            if there:  # that of a run that was stopped before it
                publish_field(storage, self._field, manifest)
            return
        self._field = self._with_version({s: rows for s, rows in owed.items() if rows})
        config = stored_field(name, dict(self._field.settings))
        write_field_metadata(PlannedField(cache=self._planned, field=self._field, config=config))
        warnings: list[str] = []
        waiting, threads = iter(sorted(owed)), min(map(self._num_threads, owed))
        with ThreadPoolExecutor(threads) as pool:
            while window := list(itertools.islice(waiting, AHEAD * threads)):
                # Here, for plans and sources are not for several threads.
                works = [self._work(shard) for shard in window]
                for found in pool.map(self._commit, works):
                    warnings += found
        publish_field(storage, self._field, manifest)
        num_owed = sum(map(len, owed.values()))
        yield FieldCopied(name=name, num_shards=len(owed), num_owed=num_owed, warnings=warnings)

    def _num_threads(self, shard: ShardId) -> int:
        layouts = self._field.layouts(self._planned.manifest, 1, shard.bucket)
        num_bytes = sum(x.sample_bytes * min(x.shard_rows, x.num_rows) * x.choices for x in layouts)
        return max(1, min(NUM_THREADS, MEMORY_BYTES // max(1, num_bytes * TIMES_IN_MEMORY)))

    def _work(self, place: ShardId) -> _Work:
        """Return what the rows of a shard are copied from."""
        plan = self._planned.plan
        shard = plan.shard(place)
        sources = {row: (self._own, clip) for row, clip in plan.origins(place).items()}
        for row, imported in plan.imports(place).items():
            if (source := self._of_parent(imported.parent)) is not None:
                sources[row] = source, imported.clip
        texts = self._own.first_texts(place)
        origins: dict[int, _Origin] = {}
        current: set[int] = set(shard.retired)
        for row, (source, clip) in sources.items():
            newest = source.newest(clip.shard).get(clip.row)
            if newest is None or row in shard.retired:
                continue
            origins[row] = _Origin(source=source, clip=clip, newest=newest)
            wanted = None if texts is None else texts[row]
            if newest.positions is not None and source.is_current(
                clip.shard, clip.row, newest.version, wanted
            ):
                current.add(row)
        return _Work(
            shard=shard, origins=origins, owed=frozenset(range(len(shard.clips))) - current
        )

    def _of_parent(self, parent: Parent) -> FieldSource | None:
        """Return the field of a parent, as it is now; None if it has no such field, or is gone."""
        if parent not in self._of_parents:
            self._of_parents[parent] = self._open_parent(parent)
        return self._of_parents[parent]

    def _open_parent(self, parent: Parent) -> FieldSource | None:
        if self._parents is None:
            return None
        try:
            storage = self._parents.open(parent).storage
            # As it is now, for the field's versions may be of later generations.
            cache = replace(self._planned, storage=storage, manifest=read_manifest(storage))
            found = read_field(storage, self._field.name, cache.manifest)
        except (CacheError, ConfigError):  # no such field there, or no such cache
            return None
        same = found.fingerprint == self._field.fingerprint
        return FieldSource(cache, found) if same and found.choices <= self._field.choices else None

    def _with_version(self, owed: Mapping[ShardId, frozenset[int]]) -> FieldManifest:
        """Return the field with a version for rows that are owed and in none yet."""
        storage, manifest, found = self._planned.storage, self._planned.manifest, self._field
        rounds = Rounds("planning rows of a field")
        while True:
            listed = [version.rows or {} for version in found.versions]
            rows = {
                shard: left
                for shard, wanted in owed.items()
                if (left := wanted.difference(*(r.get(shard, frozenset()) for r in listed)))
            }
            if not rows:
                return found
            rounds.next()
            create_version(storage, found, "update", len(manifest.generations), rows)
            found = refresh_field(storage, found, manifest)

    def _commit(self, work: _Work) -> list[str]:
        """Copy a shard and commit it, or adopt what another run has; returns warnings."""
        storage, manifest = self._planned.storage, self._planned.manifest
        place = work.shard.id
        if adopt_field_shard(storage, manifest, self._field, 1, place) is not None:
            return []
        forms = {origin.source.chunk_form for origin in work.origins.values()}
        decompress = forms != {self._own.chunk_form}
        where = (storage, manifest, self._field, 1, place)
        try:
            samples = self._samples(work, decompress=decompress)
            commit_field_shard(*where, samples, packed=not decompress)
        except ValueError as error:
            if isinstance(error, CacheError) or decompress:
                raise
            # The chunks are written in another way than this version of the format writes them.
            work.warnings.clear()
            commit_field_shard(*where, self._samples(work, decompress=True))
        return work.warnings

    def _samples(self, work: _Work, *, decompress: bool) -> list[Sample]:
        found: dict[int, list[Sample]] = {}
        groups: dict[tuple[int, ShardId, int], list[int]] = {}
        for row, origin in work.origins.items():
            if origin.newest.positions is not None:
                group = (id(origin.source), origin.clip.shard, origin.newest.version)
                groups.setdefault(group, []).append(row)
        for rows in groups.values():
            found |= self._take(work, rows, decompress=decompress)
        samples: list[Sample] = []
        for row, clip in enumerate(work.shard.clips):
            nothing = Sample(key=clip.key, row=row, choice=0)
            if row in work.shard.retired:
                samples.append(nothing.failed(str(RETIRED.reason), RETIRED.message))
            else:
                why = nothing.failed(NOT_COPIED, "there was no sound value that could be copied")
                samples += found.get(row, [why])
        return samples if decompress else _shared(samples)

    def _take(
        self, work: _Work, rows: Sequence[int], *, decompress: bool
    ) -> dict[int, list[Sample]]:
        """Return the samples of rows from one sample table. Of damaged bytes, those that are sound."""
        origins = [work.origins[row] for row in rows]
        source, version, shard = (
            origins[0].source,
            origins[0].newest.version,
            origins[0].clip.shard,
        )
        places = [origin.newest.positions or () for origin in origins]
        positions = [position for of_row in places for position in of_row]
        try:
            taken = iter(source.take(shard, version, positions, decompress=decompress))
        except CorruptionError as error:
            if len(rows) > 1:
                parts = [self._take(work, [row], decompress=decompress) for row in rows]
                return {row: samples for part in parts for row, samples in part.items()}
            work.warnings.append(f"a value of the field {source.field.name} is lost: {error}")
            return {}
        found: dict[int, list[Sample]] = {}
        for row, of_row in zip(rows, places, strict=True):
            key = work.shard.clips[row].key
            found[row] = [
                replace(sample, row=row) for sample in itertools.islice(taken, len(of_row))
            ]
            if any(sample.key != key for sample in found[row]):
                raise CorruptionError(
                    f"the field {source.field.name}: row {row} of shard {work.shard.id.name} should be "
                    f"clip {key!r}, and is {found[row][0].key!r} where it is copied from"
                )
        return found


def _shared(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples of which equal chunks are the same object, so that they are stored once."""
    firsts: dict[StoredChunk, StoredChunk] = {}
    return [
        sample
        if sample.arrays is None
        else replace(sample, arrays=[firsts.setdefault(chunk, chunk) for chunk in sample.arrays])  # type: ignore[arg-type]
        for sample in samples
    ]
