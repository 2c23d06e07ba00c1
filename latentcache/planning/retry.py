"""Plans clips again: failed ones, damaged ones, and those of rejected sources. Rows are only added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import NameIndex
from latentcache.core.records import Bucket, ShardId
from latentcache.corpus.probe import Prober
from latentcache.format.columns import CAPTION
from latentcache.format.manifest import Manifest
from latentcache.format.per_frame import PER_FRAME
from latentcache.format.samples import read_samples
from latentcache.format.schemas import RETIRED_SCHEMA, SOURCE_SCHEMA
from latentcache.format.snapshot import current_index
from latentcache.planning.grow import (
    CHANGED,
    Difference,
    add_plan,
    plan_sources,
    probe,
    retire_sources,
    stamps_of,
)
from latentcache.planning.known import KnownCache, retire
from latentcache.planning.known_values import known_widths
from latentcache.planning.plan import kept_names
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage

RETRIED, DAMAGED = "tried again", "damaged"


def plan_retry(
    planned: PlannedCache,
    failed: pa.Table,
    pool: Callable[[], Prober],
    on_probed: Callable[[], object] = lambda: None,
) -> tuple[Step, Difference]:
    """Plan failed clips and rejected sources again. failed: bucket, shard and row of clips.

    A clip whose file is as it was becomes a row of a new shard. A file that has changed counts as a new
    source, and all clips of the old one are retired. What still cannot be read stays as it is; so does a
    file that has changed in a cache with values per frame, of which only the corpus has all.
    """
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    difference, step = Difference(), Step(kind="retry")
    rows = _rows_at(known, failed)
    names = [*dict.fromkeys([*rows["source"].to_pylist(), *known.rejected])]
    sources = _as_corpus(known, names, rows)
    stamps = stamps_of(planned, sources)
    sources = sources.append_column("stamp", stamps)
    probed = probe(sources, pool, on_probed, None)
    difference.num_probed = probed.num_rows
    difference.num_rejected = len(known.rejected)
    widths = known_widths(known) if PER_FRAME in sources.column_names else {}
    rejected = _reasons(plan_sources(planned, probed, widths=widths).rejected)
    taken, again = list[bool](), set[str]()
    changed, repaired, without_values = list[str](), list[str](), list[str]()
    for row in probed.select(["name", "identity"]).to_pylist():
        before = known.sources[row["name"]]
        is_same = row["identity"] == before.identity and not before.is_rejected
        usable = row["name"] not in rejected
        if is_same:
            again.add(row["name"])
        elif usable:
            (repaired if before.is_rejected else changed).append(row["name"])
        elif rejected[row["name"]] == "missing_input" and not before.is_rejected:
            without_values.append(row["name"])
        taken.append(usable and not is_same)
    fresh = probed.filter(pa.array(taken, pa.bool_()))
    add_plan(step, plan_sources(planned, fresh, widths=widths), fresh)
    difference.changed, difference.repaired, difference.retried, difference.without_values = (
        pa.chunked_array([pa.array(names, pa.string())])
        for names in (changed, repaired, sorted(again), without_values)
    )
    retire_sources(step, known, difference.changed, CHANGED)
    _plan_again(step, rows.filter(_is_in(rows["source"], again)), RETRIED)
    return step, difference


def failed_rows(storage: Storage, manifest: Manifest) -> pa.Table:
    """Return bucket, shard and row of the failed clips that count. Raises CorruptionError."""
    index = current_index(storage, manifest)
    failed = index.filter(pc.less(index["num_ok"], index["num_clips"]))
    names = ["bucket", "shard", "row", "status"]
    tables = [read_samples(storage, manifest.fingerprint, row, names) for row in failed.to_pylist()]
    if not tables:
        return RETIRED_SCHEMA.empty_table()
    rows = pa.concat_tables(tables)
    return rows.filter(pc.not_equal(rows["status"], "ok"))


def plan_repair(storage: Storage, manifest: Manifest, damaged: pa.Table) -> Step:
    """Plan damaged clips again. damaged: bucket, shard and row of clips."""
    known = KnownCache(storage, manifest, PlanReader(storage, manifest))
    step = Step(kind="repair")
    _plan_again(step, _rows_at(known, damaged), DAMAGED)
    return step


def _plan_again(step: Step, rows: pa.Table, why: str) -> None:
    """Add rows as new clips of their buckets, and retire the old ones."""
    if not rows.num_rows:
        return
    step.retired.append(retire(rows, why))
    for name in sorted(set(rows["bucket"].to_pylist())):
        chosen = rows.filter(pc.equal(rows["bucket"], name)).drop_columns(["bucket"])
        step.clips.setdefault(Bucket.parse(name), []).append(chosen)


def _rows_at(known: KnownCache, places: pa.Table) -> pa.Table:
    """Return the rows that count at some places: bucket, and the plan's columns."""
    wanted: dict[ShardId, list[int]] = {}
    for row in places.select(["bucket", "shard", "row"]).to_pylist():
        wanted.setdefault(ShardId(row["bucket"], row["shard"]), []).append(row["row"])
    return known.rows_at(wanted)


def _reasons(rejected: pa.Table) -> dict[str, str]:
    """Return why sources give no clip, by their names."""
    return dict(zip(rejected["source"].to_pylist(), rejected["reason"].to_pylist(), strict=True))


def _is_in(column: pa.ChunkedArray, names: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(sorted(names), pa.string()))


def _as_corpus(known: KnownCache, names: Sequence[str], rows: pa.Table) -> pa.Table:
    """Return known sources as a corpus has them, to be probed: captions and kept columns of their rows.

    Values per frame of a clip are those of its own frames, and never stand for its source's.
    """
    types = {name: rows.schema.field(name).type for name in kept_names(rows)} | known.kept_types()
    own = rows.drop_columns([PER_FRAME]) if PER_FRAME in rows.column_names else rows
    columns = {"source": pa.string(), CAPTION: pa.string(), **types}
    labels = pa.concat_tables([_as_types(table, columns) for table in (own, known.rejected_rows())])
    sources = {name: source for name in names if (source := known.sources[name])}
    table = pa.Table.from_pylist(
        [{"name": n, "url": s.url, "kind": s.kind} for n, s in sources.items()], SOURCE_SCHEMA
    )
    at = NameIndex(labels["source"]).find(table["name"])
    caption = table.column_names.index(CAPTION)
    table = table.set_column(caption, SOURCE_SCHEMA.field(CAPTION), taken(labels[CAPTION], at))
    for name in types:
        table = table.append_column(name, taken(labels[name], at))
    return table


def _as_types(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return some columns of a table in their types, null where it lacks one."""
    columns = {}
    for name, kind in types.items():
        given = table[name] if name in table.column_names else pa.nulls(table.num_rows)
        try:
            columns[name] = given.cast(kind)
        except pa.ArrowException:  # values per frame, whose columns come and go
            columns[name] = pa.array(given.to_pylist(), kind)
    return pa.table(columns)
