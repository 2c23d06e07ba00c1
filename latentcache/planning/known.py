"""What a cache knows of its sources: their identities, their rows that count, and their captions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ClipId, ShardId
from latentcache.format.columns import read_columns
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import read_rejected
from latentcache.format.schemas import PLAN_SCHEMA, RETIRED_SCHEMA, SAMPLE_SCHEMA
from latentcache.planning.known_sources import read_known
from latentcache.planning.planned import PlanReader
from latentcache.storage.folder import Storage
from latentcache.storage.urls import public_name

#: Planned rows whose sources are looked up together.
LOOKED_UP_ROWS = 1 << 18


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

    def shards(self) -> Iterator[tuple[ShardId, pa.Table]]:
        """Yield every planned shard and the rows of it that count, with their captions as they are now."""
        for bucket in self._manifest.buckets:
            for number in range(bucket.num_shards):
                shard = ShardId(bucket.name, number)
                rows = self._plan.rows(shard)
                if rows.num_rows:
                    yield shard, rows

    def looked_up(self, names: pa.Array) -> Iterator[tuple[ShardId, pa.Table, pa.Array]]:
        """Yield `shards`, with the places of their rows' sources among `names`; null where it has none.

        Many shards are looked up together: each time, all names are hashed.
        """
        shards = self.shards()
        while group := list(_of_rows(shards, LOOKED_UP_ROWS)):
            sources = [chunk for _, rows in group for chunk in rows["source"].chunks]
            found = pc.index_in(pa.chunked_array(sources, pa.string()), value_set=names)
            places, start = found.combine_chunks(), 0
            for shard, rows in group:
                yield shard, rows, places.slice(start, rows.num_rows)
                start += rows.num_rows

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
        types = {
            field.name: field.type
            for schema in [*schemas, self.rejected_rows().schema]
            for field in schema
            if not pa.types.is_null(field.type)
        }
        known = {*PLAN_SCHEMA.names, *SAMPLE_SCHEMA.names}
        return {name: kind for name, kind in types.items() if name not in known}

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
                found.append(_in_bucket(shard, rows.filter(chosen)))
        return _concatenated(found)

    def rows_of(self, names: Collection[str]) -> pa.Table:
        """Return the rows that count of some sources: bucket, and the plan's columns."""
        wanted = pa.array(sorted(names), pa.string())
        found = [
            _in_bucket(shard, rows.filter(pc.is_valid(places)))
            for shard, rows, places in self.looked_up(wanted)
            if places.null_count < len(places)
        ]
        return _concatenated(found)


def _of_rows(
    shards: Iterator[tuple[ShardId, pa.Table]], num_rows: int
) -> Iterator[tuple[ShardId, pa.Table]]:
    """Yield shards until they have so many rows together, or more."""
    for shard, rows in shards:
        yield shard, rows
        num_rows -= rows.num_rows
        if num_rows <= 0:
            return


def _in_bucket(shard: ShardId, rows: pa.Table) -> pa.Table:
    return rows.append_column("bucket", pa.array([shard.bucket] * rows.num_rows, pa.string()))


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        return pa.schema([*PLAN_SCHEMA, pa.field("bucket", pa.string())]).empty_table()
    return pa.concat_tables(tables, promote_options="default")


def retire(rows: pa.Table, why: str) -> pa.Table:
    """Return rows, with their bucket, as RETIRED_SCHEMA."""
    reasons = pa.array([why] * rows.num_rows, pa.string())
    return rows.append_column("why", reasons).select(RETIRED_SCHEMA.names).cast(RETIRED_SCHEMA)


def as_sources(known: KnownCache, names: pa.ChunkedArray) -> pa.Table:
    """Return source, url, kind, identity and stamp of sources that are gone."""
    rows = known.sources.places(names)
    table = known.sources.table.take(rows).drop_columns(["what"])
    urls = map(public_name, table["url"].to_pylist())  # nobody fetches it again
    return table.set_column(1, table.schema.field("url"), pa.array(urls, pa.string()))
