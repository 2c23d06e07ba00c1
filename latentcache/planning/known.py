"""What a cache knows of its sources: their identities, their rows that count, and their captions."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.names import NameIndex, Rows
from latentcache.core.records import ClipId, ShardId
from latentcache.format.columns import read_columns
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import read_rejected
from latentcache.format.schemas import PLAN_SCHEMA, RETIRED_SCHEMA, SAMPLE_SCHEMA
from latentcache.planning.kept_types import completed
from latentcache.planning.known_sources import read_known
from latentcache.planning.masks import looked_up
from latentcache.planning.planned import PlanReader
from latentcache.storage.folder import Storage
from latentcache.storage.urls import public_name

#: Planned rows that are looked at together.
GROUP_ROWS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Group:
    """Shards of one bucket that have the same columns.

    shards: how many rows of each count; rows: all of these; at: where the source of each is in an index,
    -1 if nowhere.
    """

    shards: Mapping[ShardId, int]
    rows: pa.Table
    at: Rows

    @property
    def bucket(self) -> str:
        """The bucket of the shards."""
        return next(iter(self.shards)).bucket

    def slices(self) -> Iterator[tuple[ShardId, slice]]:
        """Yield which rows are of which shard."""
        start = 0
        for shard, number in self.shards.items():
            yield shard, slice(start, start + number)
            start += number


class KnownCache:
    """What is planned in a cache, by source."""

    def __init__(self, storage: Storage, manifest: Manifest, plan: PlanReader) -> None:
        self._storage, self._manifest, self._plan = storage, manifest, plan
        self.sources = read_known(storage, manifest)

    @property
    def rejected(self) -> list[str]:
        """Names of the sources that give no clip."""
        known = self.sources.table
        names: list[str] = known["source"].filter(pc.equal(known["what"], "rejected")).to_pylist()
        return names

    def shards(self, among: Container[ShardId] | None = None) -> Iterator[tuple[ShardId, pa.Table]]:
        """Yield every planned shard, or those among some, and the rows of it that count.

        These have their captions as they are now.
        """
        for bucket in self._manifest.buckets:
            for number in range(bucket.num_shards):
                shard = ShardId(bucket.name, number)
                if among is not None and shard not in among:
                    continue
                rows = self._plan.rows(shard)
                if rows.num_rows:
                    yield shard, rows

    def looked_up(
        self, index: NameIndex, among: Container[ShardId] | None = None
    ) -> Iterator[Group]:
        """Yield the rows of `shards`, many together, with the places of their sources in an index."""
        for shards, rows in _groups(self.shards(among)):
            yield Group(shards=shards, rows=rows, at=index.find(rows["source"]))

    def num_rows(self, shard: ShardId) -> int:
        """Return how many rows a shard has, retired ones too."""
        return self._manifest.num_rows(shard)

    def rejected_rows(self) -> pa.Table:
        """Return the rejected sources, as rows of the cache's table."""
        return read_rejected(self._storage, self._manifest)

    def kept_types(self) -> dict[str, pa.DataType]:
        """Return the types of the kept columns by name; of one that has only had nulls, none."""
        parts = [(g, part.bucket) for g in self._manifest.generations for part in g.parts]
        schemas = [self._plan.plan(*part).schema for part in parts]  # one table in memory at a time
        folders = {folder: shard for shard, folder in self._plan.standing.columns.items()}
        schemas += [
            read_columns(self._storage, folder, shard).schema for folder, shard in folders.items()
        ]
        types: dict[str, pa.DataType] = {}
        for schema in [*schemas, self.rejected_rows().schema]:
            types |= {f.name: completed(f.type, types.get(f.name)) for f in schema}
        known = {*PLAN_SCHEMA.names, *SAMPLE_SCHEMA.names}
        return {n: t for n, t in types.items() if n not in known and not pa.types.is_null(t)}

    def rows_at(self, wanted: Mapping[ShardId, Sequence[int]]) -> pa.Table:
        """Return the clips that count at some places: bucket, and the plan's columns.

        Of a clip that is being copied into another shard, this is the row there.
        """
        found, changes = [], self._plan.changes
        last: dict[ShardId, list[int]] = {}
        for shard, numbers in wanted.items():
            for number in numbers:
                clip = changes.last(ClipId(shard=shard, row=number))
                last.setdefault(clip.shard, []).append(clip.row)
        for shard, rows in self.shards():
            if shard in last:
                chosen = pc.is_in(rows["row"], value_set=pa.array(sorted(last[shard]), pa.int32()))
                found.append(_in_bucket(shard.bucket, rows.filter(chosen)))
        return _concatenated(found)

    def rows_of(self, names: Collection[str]) -> pa.Table:
        """Return the rows that count of some sources: bucket, and the plan's columns."""
        index = NameIndex(pa.chunked_array([pa.array(sorted(names), pa.string())]))
        found = [
            _in_bucket(group.bucket, group.rows.filter(pa.array(group.at >= 0)))
            for group in self.looked_up(index)
            if (group.at >= 0).any()
        ]
        return _concatenated(found)


def _groups(
    shards: Iterator[tuple[ShardId, pa.Table]],
) -> Iterator[tuple[dict[ShardId, int], pa.Table]]:
    """Yield shards of one bucket and with the same columns together, up to GROUP_ROWS rows or so."""
    numbers: dict[ShardId, int] = {}
    tables: list[pa.Table] = []
    for shard, rows in shards:
        if tables and (
            sum(numbers.values()) >= GROUP_ROWS
            or shard.bucket != next(iter(numbers)).bucket
            or not rows.schema.equals(tables[0].schema)
        ):
            yield numbers, pa.concat_tables(tables)
            numbers, tables = {}, []
        numbers[shard] = rows.num_rows
        tables.append(rows)
    if tables:
        yield numbers, pa.concat_tables(tables)


def _in_bucket(bucket: str, rows: pa.Table) -> pa.Table:
    return rows.append_column("bucket", pa.array([bucket] * rows.num_rows, pa.string()))


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        return pa.schema([*PLAN_SCHEMA, pa.field("bucket", pa.string())]).empty_table()
    return pa.concat_tables(tables, promote_options="default")


def retire(rows: pa.Table, why: str) -> pa.Table:
    """Return rows, with their bucket, as RETIRED_SCHEMA."""
    reasons = pa.array([why] * rows.num_rows, pa.string())
    return rows.append_column("why", reasons).select(RETIRED_SCHEMA.names).cast(RETIRED_SCHEMA)


def as_sources(known: KnownCache, names: pa.ChunkedArray) -> pa.Table:
    """Return source, url, kind, identity and stamp of known sources, with the URLs they are read by."""
    rows = known.sources.find(names)
    columns = known.sources.table.drop_columns(["what"])
    return pa.table([looked_up(column, rows) for column in columns.columns], schema=columns.schema)


def as_gone(known: KnownCache, names: pa.ChunkedArray) -> pa.Table:
    """Return what `as_sources` does, of sources that nobody reads again: their URLs have no secrets."""
    table = as_sources(known, names)
    urls = map(public_name, table["url"].to_pylist())
    return table.set_column(1, table.schema.field("url"), pa.array(urls, pa.string()))
