"""Plans clips again: failed ones, damaged ones, and those of rejected sources. Rows are only added."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import NameIndex
from latentcache.core.records import Bucket, ShardId
from latentcache.corpus.probe import Prober
from latentcache.format.columns import CAPTION
from latentcache.format.manifest import Manifest
from latentcache.format.per_frame import PER_FRAME
from latentcache.format.schemas import SOURCE_SCHEMA
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
from latentcache.planning.known_sources import KnownSource
from latentcache.planning.known_values import known_widths
from latentcache.planning.plan import kept_names
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage
from latentcache.storage.parts import part_of

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
    file that has changed in a cache with values per frame, of which only the corpus has all, and a part of
    a file that was written again, or may have been, of which only the corpus says where it is.
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
    others = _others_in_place(planned, known, probed, rejected)
    fresh = _sort_out(probed, known, rejected, others, difference)
    add_plan(step, plan_sources(planned, fresh, widths=widths), fresh)
    retire_sources(step, known, difference.changed, CHANGED)
    again = pc.is_in(rows["source"], value_set=difference.retried.combine_chunks())
    _plan_again(step, rows.filter(again), RETRIED)
    return step, difference


def _sort_out(
    probed: pa.Table,
    known: KnownCache,
    rejected: Mapping[str, str],
    others: Mapping[str, str],
    difference: Difference,
) -> pa.Table:
    """Return the probed sources that are to be planned, and name what all are.

    rejected: why, by name. others: see `_others_in_place`.
    """
    kinds = ("retried", "rewritten", "unstamped", "changed", "repaired", "without_values")
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, identity in zip(*(probed[n].to_pylist() for n in ("name", "identity")), strict=True):
        before = known.sources[name]
        if _is_same(identity, before) and not before.is_rejected:
            found["retried"].append(name)
        elif name in others:
            found[others[name]].append(name)
        elif name not in rejected:
            found["repaired" if before.is_rejected else "changed"].append(name)
        elif rejected[name] == "missing_input" and not before.is_rejected:
            found["without_values"].append(name)
    for kind, names in found.items():
        setattr(difference, kind, pa.chunked_array([pa.array(names, pa.string())]))
    fresh = pa.array([*found["changed"], *found["repaired"]], pa.string())
    return probed.filter(pc.is_in(probed["name"], value_set=fresh))


def _is_same(identity: str | None, before: KnownSource) -> bool:
    """Tell whether a source is known to have the content that it had."""
    return identity is not None and identity == before.identity


def _others_in_place(
    planned: PlannedCache, known: KnownCache, probed: pa.Table, rejected: Container[str]
) -> dict[str, str]:
    """Return parts of files in whose place there are, or may be, the bytes of another source.

    By name: `rewritten`, or `unstamped`, where it cannot be told. The stamps are looked at after the bytes,
    so that no file can have been written again between the two.
    """
    is_part = [part_of(url) is not None for url in probed["url"].to_pylist()]
    parts = probed.filter(pa.array(is_part, pa.bool_()))
    columns = parts["name"].to_pylist(), parts["identity"].to_pylist()
    others: dict[str, str] = {}
    for name, identity, stamp in zip(*columns, stamps_of(planned, parts).to_pylist(), strict=True):
        before = known.sources[name]
        if _is_same(identity, before):
            continue
        if None not in (stamp, before.stamp):
            if stamp != before.stamp:
                others[name] = "rewritten"
        elif None not in (identity, before.identity):
            others[name] = "rewritten"
        elif not before.is_rejected or name not in rejected:
            others[name] = "unstamped"
    return others


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
