"""Merging and copying: the clips of one or several caches become the first generation of another one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.copying.owners import Owners, Prefer, Union
from latentcache.copying.parents import parent_of
from latentcache.copying.plan_rows import check_widths, common_types, joined_rows
from latentcache.copying.selection import Selection, select_rows
from latentcache.copying.sources import NewSources
from latentcache.copying.stored_rows import OpenCache
from latentcache.copying.taken import Taken
from latentcache.copying.waiting import WaitingClips
from latentcache.core.records import Bucket, ShardFormat, ShardId
from latentcache.errors import CacheError, RecipeMismatchError
from latentcache.format.manifest import CREATED_BY, Manifest, recipe_difference
from latentcache.format.samples import read_all_rows
from latentcache.format.snapshot import current_index
from latentcache.planning.known import KnownCache
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.reading.cache import Cache
from latentcache.storage.folder import redact
from latentcache.storage.urls import public_name


@dataclass(frozen=True, kw_only=True)
class Member:
    """A cache to copy from: as it is planned, its snapshot, and what is known of its sources."""

    planned: PlannedCache
    cache: Cache
    known: KnownCache

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return redact(self.planned.storage.url)

    @property
    def opened(self) -> OpenCache:
        """The cache, to read rows from."""
        return OpenCache(storage=self.planned.storage, manifest=self.planned.manifest)


def open_member(planned: PlannedCache, *, allow_unfinished: bool) -> Member:
    """Return a cache to copy from, as it is committed now. Raises CacheError if it is not finished."""
    storage, manifest = planned.storage, planned.manifest
    missing = planned.missing_shards()
    if missing and not allow_unfinished:
        raise CacheError(
            f"{redact(storage.url)} is not finished: {len(missing)} of its shards are still to be encoded "
            "or copied, and their clips would be missed. Nothing was written. Finish it: latentcache "
            f"resume {redact(storage.url)}. Or copy what is committed: --allow-unfinished"
        )
    cache = Cache(storage, manifest, current_index(storage, manifest))
    return Member(planned=planned, cache=cache, known=KnownCache(storage, manifest, planned.plan))


def manifest_of(members: Sequence[Member], shard_format: ShardFormat | None, url: str) -> Manifest:
    """Return what the new cache at `url` is: the first one's recipe and settings, with nothing planned.

    Raises RecipeMismatchError, naming what differs, unless all have one recipe.
    """
    first = members[0].planned.manifest
    for member in members[1:]:
        other = member.planned.manifest
        if other.fingerprint != first.fingerprint:
            lines = recipe_difference(first.recipe, other.recipe)
            lines = [line.replace(" in the cache, ", f" in {members[0].url}, ") for line in lines]
            lines = [line.removesuffix(" now") + f" in {member.url}" for line in lines]
            raise RecipeMismatchError(
                f"{members[0].url} and {member.url} were made with different recipes, so their latents do "
                "not go together. Nothing was written. The difference:\n"
                + "\n".join(f"  {line}" for line in lines)
            )
    name = shard_format or first.format
    chunk_frames = first.chunk_frames if name == "zarr" else None
    place: dict[str, Any] = {
        "url": public_name(url),
        "format": name,
        "chunk_frames": chunk_frames,
        "storage_options": {},
    }
    config = {**first.config, "cache": {**first.config["cache"], **place}}
    return dataclasses.replace(
        first,
        format=name,
        chunk_frames=chunk_frames,
        config=config,
        created_by=CREATED_BY,
        generations=(),
    )


def in_words(selection: Selection, prefer: Prefer | None) -> str:
    """Return what a generation says of what was copied; the same words, the same clips."""
    words = [selection.in_words(), f"prefer {prefer}" if prefer else ""]
    return "; ".join(filter(None, words))


@dataclass(kw_only=True)
class Gathered:
    """What goes into the new cache.

    num_twice: clips that several caches have, taken once. num_relabelled: those of them whose captions or
    kept columns are others in another cache. num_waiting: clips that are selected and still to be encoded.
    num_partial: sources some of whose clips waited already when an earlier copy was made. num_other: clips
    that are left out, of `num_other_sources` sources of which another cache has the content that counts.
    """

    step: Step
    num_clips: int = 0
    num_waiting: int = 0
    num_twice: int = 0
    num_relabelled: int = 0
    num_partial: int = 0
    num_other: int = 0
    num_other_sources: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def gather(
    members: Sequence[Member],
    selection: Selection,
    prefer: Prefer | None,
    kind: Literal["merge", "copy"],
) -> Gathered:
    """Plan the clips of caches that are to be in the new one, in the order of the caches and their shards.

    Of a source that several caches have, each clip is taken once. If its content differs, all of its
    clips are of one cache's content, as `prefer` says; without that, CacheError names such sources.
    Raises ConfigError for a selection that makes no sense, and CacheError for one that cannot be completed.
    """
    owners = Owners(Union([member.known.sources for member in members]), prefer)
    step = Step(
        kind=kind,
        parents=tuple(parent_of(member.opened) for member in members),
        selection=in_words(selection, prefer),
    )
    gathered = Gathered(step=step)
    tables: dict[str, list[tuple[int, pa.Table]]] = {}
    waiting = [WaitingClips(member.planned, member.cache, selection) for member in members]
    taken = Taken(owners, _pairs(waiting, owners), is_all=selection.is_all)
    failed: list[tuple[int, ShardId, pa.Table]] = []  # after all that are ok, which come first
    for number, member in enumerate(members):
        taken.begin()
        for shard, rows in _rows(member, select_rows(member.cache, selection)):
            is_late = pa.array(owners.shared(rows["source"]))
            if pc.any(is_late).as_py():
                is_late = pc.and_(is_late, _failed(member, shard, rows))
                failed.append((number, shard, rows.filter(is_late)))
                rows = rows.filter(pc.invert(is_late))
            _take(tables, taken, number, shard, rows)
    for number, late in itertools.groupby(failed, key=lambda each: each[0]):
        taken.begin()
        for _, shard, rows in late:
            _take(tables, taken, number, shard, rows)
    lacking = owners.union.mask(taken.lacking)
    sources = NewSources(
        [member.known for member in members], owners, selection, taken.given, lacking
    )
    for of_member in waiting:
        of_member.check_whole(taken.lacking)
        of_member.check_partial(sources.partial)
    gathered.num_twice, gathered.num_relabelled = taken.num_twice, taken.num_relabelled
    gathered.num_other, gathered.num_other_sources = taken.num_other, taken.num_other_sources
    gathered.num_waiting, gathered.num_partial = taken.num_waiting, len(sources.partial)
    rejected = sources.add_to(step)
    in_order = sorted(itertools.chain(*tables.values()), key=lambda part: part[0])
    kinds = common_types([*(rows for _, rows in in_order), *rejected])
    if rejected:
        step.rejected = joined_rows(rejected, kinds)
    check_widths(rows for _, rows in in_order)
    for name, parts in sorted(tables.items()):
        bucket, rows = Bucket.parse(name), joined_rows([part for _, part in parts], kinds)
        step.clips[bucket] = [rows]
        step.origins[bucket] = pa.table(
            {
                "parent": np.repeat(
                    np.array([number for number, _ in parts], np.int32),
                    [part.num_rows for _, part in parts],
                ),
                "from_shard": rows["shard"],
                "from_row": rows["row"],
            }
        )
        gathered.counts[name] = rows.num_rows
    gathered.num_clips = step.num_clips
    return gathered


def _pairs(waiting: Sequence[WaitingClips], owners: Owners) -> Iterator[tuple[str, str]]:
    """Yield source and key of the clips that wait in a cache that is right about their source."""
    for number, of_member in enumerate(waiting):
        pairs = [*of_member.clips()]
        names = pa.chunked_array([pa.array([source for source, _ in pairs], pa.string())])
        yield from itertools.compress(pairs, owners.is_right(number, names))


def _take(
    tables: dict[str, list[tuple[int, pa.Table]]],
    taken: Taken,
    number: int,
    shard: ShardId,
    rows: pa.Table,
) -> None:
    """Add the rows of a shard that are not taken yet to the clips of their bucket."""
    mine = taken.new_ones(number, rows)
    if mine.num_rows:
        tables.setdefault(shard.bucket, []).append((number, mine))


def _failed(member: Member, shard: ShardId, rows: pa.Table) -> pa.ChunkedArray:
    """Return which rows of a shard failed."""
    manifest = member.planned.manifest
    columns = ["row", "status"]
    table = read_all_rows(member.planned.storage, manifest.fingerprint, shard, columns)
    numbers = table.filter(pc.not_equal(table["status"], "ok"))["row"].combine_chunks()
    return pc.is_in(rows["row"], value_set=numbers)


def _rows(
    member: Member, selected: Mapping[ShardId, Collection[int]] | None
) -> Iterator[tuple[ShardId, pa.Table]]:
    """Yield the committed rows that count and are selected, shard by shard."""
    plan = member.planned.plan
    standing = plan.changes.among(member.cache.committed)
    for shard in sorted(member.cache.committed):
        if selected is not None and shard not in selected:
            continue
        rows = plan.rows(shard, standing)
        if selected is not None:
            wanted = pa.array(sorted(selected[shard]), pa.int32())
            rows = rows.filter(pc.is_in(rows["row"], value_set=wanted))
        yield shard, rows
