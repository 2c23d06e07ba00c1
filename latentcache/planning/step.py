"""A step: what a generation adds, retires and changes, put together as tables. Pure but for reading."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import Bucket, ShardId
from latentcache.errors import CorpusError
from latentcache.format.generations import (
    Generation,
    Kind,
    Parent,
    Part,
    append,
    digest_of,
    folder_name,
)
from latentcache.format.kept_schema import kept_text
from latentcache.format.manifest import Manifest
from latentcache.format.paths import (
    columns_index_path,
    columns_path,
    copied_path,
    imported_path,
    plan_path,
    rejected_path,
    retired_path,
    sources_path,
)
from latentcache.format.schemas import (
    CHANGED_SCHEMA,
    COPIED_SCHEMA,
    IMPORTED_SCHEMA,
    PLANNED_SOURCE_SCHEMA,
    RETIRED_SCHEMA,
    plan_facts,
)
from latentcache.format.tables import MAX_PLAN_BYTES, to_large_parquet
from latentcache.planning.masks import repeated
from latentcache.planning.plan import Plan, place_rows
from latentcache.storage.folder import Storage
from latentcache.storage.spill import Data


@dataclass(kw_only=True)
class Step:
    """What a generation does. All empty: there is nothing to do.

    clips: of each bucket, PLAN_SCHEMA and the kept columns; their places are given when the step is
    written. rejected: rows of the cache's table. sources: PLANNED_SOURCE_SCHEMA. retired: RETIRED_SCHEMA.
    columns: captions and kept columns of all rows of a shard. origins: of a step that copies, shard and row
    that each of the clips is copied from, by bucket and in the order of `clips`; where they are of other
    caches, `parents`, that is the number of the parent, from_shard and from_row. parents: beside these, the
    cache whose clips are decoded, as it was read. selection, corpus, takes_over: see
    Generation.
    """

    kind: Kind
    clips: dict[Bucket, list[pa.Table]] = field(default_factory=dict)
    rejected: pa.Table | None = None
    sources: list[pa.Table] = field(default_factory=list)
    retired: list[pa.Table] = field(default_factory=list)
    columns: dict[ShardId, pa.Table] = field(default_factory=dict)
    origins: dict[Bucket, pa.Table] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    selection: str = ""
    corpus: str = ""
    takes_over: bool = False
    num_relabelled: int = 0

    def __bool__(self) -> bool:
        changed = self.clips or self.sources or self.retired or self.columns
        return bool(changed) or self.takes_over

    @property
    def num_clips(self) -> int:
        """Clips that it adds."""
        return sum(table.num_rows for tables in self.clips.values() for table in tables)

    def add_sources(self, table: pa.Table, what: str) -> None:
        """Say something of sources. table: columns source, url, kind, identity, stamp."""
        if table.num_rows:
            column = repeated(what, table.num_rows)
            table = table.append_column(PLANNED_SOURCE_SCHEMA.field("what"), column)
            self.sources.append(table.select(PLANNED_SOURCE_SCHEMA.names))


def planned_by(manifest: Manifest, plan: Plan) -> Manifest:
    """Return a manifest as if a plan had been written as its next generation."""
    clips = {bucket: [table] for bucket, table in plan.buckets.items()}
    generation, _ = to_generation(manifest, Step(kind="plan", clips=clips))
    return replace(manifest, generations=(*manifest.generations, generation))


def write_step(storage: Storage, manifest: Manifest, step: Step) -> bool:
    """Write a step as the generation after those of a manifest; returns whether it counts.

    False: another run has written a generation of that number meanwhile. Raises StorageError.
    """
    generation, tables = to_generation(manifest, step)
    return append(storage, generation, tables)


def _refuse_unreadable(named: Mapping[str, Data]) -> None:
    """Refuse what no reader would take, before anything is written. Raises CorpusError."""
    for name, data in named.items():
        if len(data) > MAX_PLAN_BYTES:
            raise CorpusError(
                f"the table {name!r} of this step has {len(data)} bytes, and none may have more than "
                f"{MAX_PLAN_BYTES}. Nothing was written. Keep fewer or shorter columns (corpus.keep), or "
                "give parts of the corpus caches of their own: `LatentLoader` takes several"
            )


def to_generation(manifest: Manifest, step: Step) -> tuple[Generation, Mapping[str, Data]]:
    """Return a step as the next generation and its tables by path."""
    number = len(manifest.generations) + 1
    shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
    facts = plan_facts(manifest.fingerprint)
    named: dict[str, Data] = {}
    parts, origins, schemas = [], [], []
    for bucket, tables in sorted(step.clips.items()):
        first = shards.get(bucket.name, 0)
        placed = place_rows(joined(tables), first, manifest.shard_clips)
        named[f"plan {bucket.name}"] = to_large_parquet(placed, facts)
        schemas.append(placed.schema)
        if bucket in step.origins:
            find = _imported if step.parents else _copied
            origins.append(find(bucket, step.origins[bucket], placed))
        num_shards = -(-placed.num_rows // manifest.shard_clips)
        parts.append(
            Part(
                bucket=bucket.name,
                first_shard=first,
                num_shards=num_shards,
                num_clips=placed.num_rows,
            )
        )
    sources = joined(step.sources, PLANNED_SOURCE_SCHEMA)
    retired = joined(step.retired, RETIRED_SCHEMA)
    copies = joined([] if step.parents else origins, COPIED_SCHEMA)
    imports = joined(origins if step.parents else [], IMPORTED_SCHEMA)
    rejected = step.rejected if step.rejected is not None and step.rejected.num_rows else None
    changed = pa.Table.from_pylist(
        [{"bucket": shard.bucket, "shard": shard.number} for shard in sorted(step.columns)],
        schema=CHANGED_SCHEMA,
    )
    for name, table in (
        ("sources", sources),
        ("retired", retired),
        ("copied", copies),
        ("imported", imports),
        ("columns", changed),
        ("rejected", rejected),
    ):
        if table is not None and table.num_rows:
            named[name] = to_large_parquet(table, facts)
    for shard, table in step.columns.items():
        named[f"columns {shard.bucket} {shard.number}"] = to_large_parquet(table, facts)
        schemas.append(table.schema)
    _refuse_unreadable(named)
    digest = digest_of(named)
    rejections, moves = (
        pc.sum(pc.equal(sources["what"], what)).as_py() or 0 for what in ("rejected", "moved")
    )
    generation = Generation(
        number=number,
        kind=step.kind,
        fingerprint=manifest.fingerprint,
        parent_sha256=manifest.generations[-1].sha256 if manifest.generations else None,
        tables_sha256=digest,
        created_s=time.time(),
        parts=tuple(parts),
        num_sources=sources.num_rows,
        num_rejected=rejections,
        num_moved=moves,
        num_retired=retired.num_rows,
        num_copied=copies.num_rows,
        num_imported=imports.num_rows,
        parents=step.parents,
        selection=step.selection,
        corpus=step.corpus,
        takes_over=step.takes_over,
        num_relabelled=step.num_relabelled,
        kept=kept_text(schemas),
    )
    folder = folder_name(number, digest)
    return generation, {_path(folder, name): data for name, data in named.items()}


def tables_of(generation: Generation, changed: Sequence[ShardId]) -> dict[str, str]:
    """Return the paths of a generation's tables by name. changed: shards with other captions since."""
    names = [f"plan {part.bucket}" for part in generation.parts]
    counts = {
        "sources": generation.num_sources,
        "retired": generation.num_retired,
        "copied": generation.num_copied,
        "imported": generation.num_imported,
        "columns": generation.num_relabelled,
        "rejected": generation.num_rejected,
    }
    names += [name for name, count in counts.items() if count]
    names += [f"columns {shard.bucket} {shard.number}" for shard in changed]
    return {name: _path(generation.folder, name) for name in names}


def _path(folder: str, name: str) -> str:
    """Return the path of one of a step's tables."""
    kind, _, rest = name.partition(" ")
    if kind == "plan":
        return plan_path(folder, rest)
    if kind == "columns" and rest:
        bucket, number = rest.split(" ")
        return columns_path(folder, bucket, int(number))
    fixed = {
        "sources": sources_path,
        "rejected": rejected_path,
        "retired": retired_path,
        "copied": copied_path,
        "imported": imported_path,
        "columns": columns_index_path,
    }
    return fixed[kind](folder)


def _copied(bucket: Bucket, origins: pa.Table, placed: pa.Table) -> pa.Table:
    """Return COPIED_SCHEMA. origins: shard and row of each; placed: the clips in their new places."""
    columns = {
        "bucket": pa.array([bucket.name] * placed.num_rows, pa.string()),
        "shard": origins["shard"],
        "row": origins["row"],
        "into_shard": placed["shard"],
        "into_row": placed["row"],
    }
    return pa.table(columns, schema=COPIED_SCHEMA)


def _imported(bucket: Bucket, origins: pa.Table, placed: pa.Table) -> pa.Table:
    """Return IMPORTED_SCHEMA. origins: parent, from_shard and from_row of each clip in its new place."""
    columns = {
        "bucket": pa.array([bucket.name] * placed.num_rows, pa.string()),
        "shard": placed["shard"],
        "row": placed["row"],
        **{name: origins[name] for name in ("parent", "from_shard", "from_row")},
    }
    return pa.table(columns, schema=IMPORTED_SCHEMA)


def joined(tables: Sequence[pa.Table], schema: pa.Schema | None = None) -> pa.Table:
    """Return tables one after the other, with all of their columns. schema: of none."""
    if not tables:
        assert schema is not None
        return schema.empty_table()
    return pa.concat_tables(tables, promote_options="default")
