"""Growing a cache: a corpus is compared with what is planned, and what differs becomes one step.

Sources are told by their names. A known one whose stamp (size and time of change, or ETag) is as it was
is not opened again. Captions and kept columns do not determine latents, so they change by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import Bucket, ShardId
from latentcache.corpus.probe import Prober, probe_sources
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.stamps import stamp_groups
from latentcache.errors import CorpusError
from latentcache.format.columns import CAPTION
from latentcache.format.manifest import Manifest
from latentcache.format.per_frame import FRAME, PER_FRAME, recut, with_types_of
from latentcache.format.samples import read_samples
from latentcache.format.schemas import PROBE_SCHEMA, RETIRED_SCHEMA, SOURCE_SCHEMA
from latentcache.format.snapshot import current_index
from latentcache.planning.known import KnownCache, as_sources, retire
from latentcache.planning.notes import Note, notes
from latentcache.planning.plan import CHUNK_ROWS, Plan, kept_names, make_plan
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage

#: Why rows are retired.
CHANGED, REMOVED, RETRIED, DAMAGED = "source changed", "removed", "tried again", "damaged"


@dataclass(kw_only=True)
class Difference:
    """How a corpus differs from what a cache knows: names of sources, and clips with other captions.

    unreadable: known sources that give no clip as they are now; their clips stay, for a disk may be away.
    num_probed: sources that were opened; num_saved: those of them that a stopped run had probed before.
    notes: what is to be said of the new clips.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    num_same: int = 0
    num_probed: int = 0
    num_saved: int = 0
    num_rejected: int = 0
    num_relabelled: int = 0
    notes: list[Note] = field(default_factory=list)


def plan_growth(
    planned: PlannedCache,
    corpus: pa.Table,
    pool: Callable[[], Prober],
    *,
    prune: bool = False,
    check_content: bool = False,
    on_probed: Callable[[], object] = lambda: None,
    saved: SavedProbes | None = None,
) -> tuple[Step, Difference]:
    """Compare a corpus (SOURCE_SCHEMA and kept columns) with a cache; returns what is to be done.

    prune: sources that the corpus lacks are retired; else they stay. check_content: files are opened
    whose stamps are as they were. Raises CorpusError, StorageError.
    """
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    stamps = _stamps(planned, corpus)
    corpus = _as_known(corpus, known).append_column("stamp", stamps)
    difference = Difference()
    mask = _to_probe(corpus, known, check_content)
    probed = _probe(corpus.filter(pa.array(mask)), pool, on_probed, saved)
    difference.num_probed = probed.num_rows
    rejected = set(_plan(planned, probed).rejected["source"].to_pylist())
    fresh = _sort_out(probed, rejected, known, difference)
    difference.num_same = corpus.num_rows - fresh.num_rows
    step = Step(kind="grow" if planned.manifest.generations else "plan")
    plan = _plan(planned, fresh)
    add_plan(step, plan, fresh)
    auto = planned.config.cache.shard_clips == "auto"
    shard_clips = 0 if auto else planned.manifest.shard_clips
    difference.notes = notes(fresh, plan.buckets, planned.config.clips, shard_clips)
    difference.gone = known.sources.without(corpus["name"])
    _retire(step, known, difference.changed, CHANGED)
    if prune and difference.gone:
        step.add_sources(as_sources(known, difference.gone), "gone")
        _retire(step, known, difference.gone, REMOVED)
    _move(step, known, corpus, fresh, difference)
    _relabel(step, known, corpus, {*difference.changed, *(difference.gone if prune else ())})
    difference.num_relabelled = step.num_relabelled
    return step, difference


def _stamps(planned: PlannedCache, sources: pa.Table) -> pa.ChunkedArray:
    config = planned.config.corpus
    urls = (batch["url"].to_pylist() for batch in _batches(sources, ["url"]))
    stamps = stamp_groups(urls, config.storage_options, config.schemes)
    return pa.chunked_array([pa.array(some, pa.string()) for some in stamps], pa.string())


def _batches(table: pa.Table, columns: list[str]) -> list[pa.RecordBatch]:
    """Cut into parts of as many rows as Python objects can be made of at once."""
    batches: list[pa.RecordBatch] = table.select(columns).to_batches(max_chunksize=CHUNK_ROWS)
    return batches


def _to_probe(corpus: pa.Table, known: KnownCache, check_content: bool) -> np.ndarray[Any, Any]:
    """Return which sources must be opened: new ones, rejected ones, those whose stamp says nothing."""
    at = known.sources.places(corpus["name"])
    stamps, what = (known.sources.table[name].take(at) for name in ("stamp", "what"))
    is_same = pc.and_(pc.equal(corpus["stamp"], stamps), pc.not_equal(what, "rejected"))
    is_known = np.asarray(pc.fill_null(is_same, False).to_numpy(), bool)
    return np.ones(len(is_known), bool) if check_content else ~is_known


def _probe(
    sources: pa.Table,
    pool: Callable[[], Prober],
    on_probed: Callable[[], object],
    saved: SavedProbes | None,
) -> pa.Table:
    if not sources.num_rows:
        empty = sources
        for column in PROBE_SCHEMA:
            empty = empty.append_column(column, pa.nulls(0, column.type))
        return empty
    with pool() as opened:
        return probe_sources(sources, opened, on_probed, saved)


def _sort_out(
    probed: pa.Table, rejected: set[str], known: KnownCache, difference: Difference
) -> pa.Table:
    """Return the probed sources that are to be planned, and name what they are."""
    taken: list[bool] = []
    places = known.sources.places(probed["name"])
    facts = probed.select(["name", "identity", "stamp"]).append_column("at", places)
    for row in _rows(facts):
        before = None if row["at"] is None else known.sources.at(row["at"])
        failed = row["name"] in rejected
        if before is None:
            (difference.rejected if failed else difference.new).append(row["name"])
        elif before.is_rejected:
            if failed and row["stamp"] == before.stamp:
                taken.append(False)
                continue
            (difference.rejected if failed else difference.repaired).append(row["name"])
        elif failed or row["identity"] == before.identity:
            if failed:
                difference.unreadable.append(row["name"])
            taken.append(False)
            continue
        else:
            difference.changed.append(row["name"])
        taken.append(True)
    return probed.filter(pa.array(taken, pa.bool_()))


def _plan(planned: PlannedCache, sources: pa.Table) -> Plan:
    config, spec = planned.config, planned.manifest.spec
    without = sources.drop_columns(["stamp"])
    return make_plan(without, config.clips, spec, shard_clips=planned.manifest.shard_clips)


def add_plan(step: Step, plan: Plan, sources: pa.Table) -> None:
    """Add the clips of a plan, and what it says of its sources."""
    for bucket, table in plan.buckets.items():
        step.clips.setdefault(bucket, []).append(table)
    if plan.rejected.num_rows:
        step.rejected = plan.rejected
    rejected = pc.is_in(sources["name"], value_set=plan.rejected["source"].combine_chunks())
    said = sources.rename_columns(
        ["source" if name == "name" else name for name in sources.column_names]
    ).select(["source", "url", "kind", "identity", "stamp"])
    step.add_sources(said.filter(pc.invert(rejected)), "planned")
    step.add_sources(said.filter(rejected), "rejected")


def _retire(step: Step, known: KnownCache, names: Sequence[str], why: str) -> None:
    if names:
        rows = known.rows_of(names)
        if rows.num_rows:
            step.retired.append(retire(rows, why))


def _move(
    step: Step, known: KnownCache, corpus: pa.Table, fresh: pa.Table, difference: Difference
) -> None:
    """Say where known sources are now that have moved; of a signed URL only the place counts."""
    columns = ("name", "url", "kind", "stamp")
    at = known.sources.places(corpus["name"])
    before = known.sources.table.select(["identity", "what"]).take(at)
    urls = known.sources.table["url"].cast(
        pa.large_string()
    )  # of which more than 2 GB can be taken
    is_moved = pc.and_(
        pc.not_equal(_places(corpus["url"].cast(pa.large_string())), _places(urls.take(at))),
        pc.not_equal(before["what"], "rejected"),
    )
    is_moved = pc.and_not(is_moved, pc.is_in(corpus["name"], value_set=fresh["name"]))
    # What cannot be used at its new place stays where it was, and is named again the next time.
    is_moved = pc.and_not(is_moved, _is_in(corpus["name"], set(difference.unreadable)))
    moved = corpus.select(list(columns)).append_column("identity", before["identity"])
    rows = moved.filter(is_moved).to_pylist()
    difference.moved += [row["name"] for row in rows]
    if rows:
        schema = pa.schema([(n, pa.string()) for n in (*columns, "identity")])
        table = pa.Table.from_pylist(rows, schema=schema)
        names = ["source" if name == "name" else name for name in table.column_names]
        step.add_sources(table.rename_columns(names), "moved")


def _places(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return URLs without their queries."""
    parts = [pc.split_pattern(chunk, "?", max_splits=1) for chunk in urls.chunks]
    return pa.chunked_array([pc.list_element(each, 0) for each in parts], urls.type)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in _batches(table, table.column_names):
        yield from batch.to_pylist()


def _relabel(step: Step, known: KnownCache, corpus: pa.Table, leave: set[str]) -> None:
    """Give shards the captions and kept columns that their sources have now, where they differ.

    Kept columns that the corpus no longer has stay as they are.
    """
    values_of = {name: corpus[name].combine_chunks() for name in (CAPTION, *kept_names(corpus))}
    value_set = corpus["name"].combine_chunks()
    left = pa.array(sorted(leave), pa.string())
    for shard, rows, at in known.looked_up(value_set):
        there = pc.and_(pc.is_valid(at), pc.invert(pc.is_in(rows["source"], value_set=left)))
        now = {
            name: _merged(rows, _values_at(rows, v, at, name), name, there)
            for name, v in values_of.items()
        }
        differ = np.zeros(rows.num_rows, bool)
        for name, values in now.items():
            before = rows[name] if name in rows.column_names else pa.nulls(rows.num_rows)
            differ |= _differ(before, values)
        if not differ.any():
            continue
        step.num_relabelled += int(differ.sum())
        left_out = [name for name in kept_names(rows) if name not in now]
        now |= {name: rows[name].combine_chunks() for name in left_out}
        step.columns[shard] = _all_rows(known, shard, rows, now)


def _values_at(rows: pa.Table, values: pa.Array, at: pa.Array, name: str) -> pa.Array:
    """Return the corpus's values for rows; those per frame cut to each clip. Raises CorpusError."""
    taken = values.take(at)
    if name != PER_FRAME:
        return taken
    try:
        return recut(taken, _frame_numbers(rows))
    except ValueError as error:
        raise CorpusError(
            f"corpus.per_frame: {error}. Nothing was changed. Give the column one value per frame of its "
            "source, as when the source was planned."
        ) from None


def _frame_numbers(rows: pa.Table) -> list[list[int]]:
    """Return which frames of their sources clips are of. Raises CorpusError where nobody noted it."""
    if PER_FRAME in rows.column_names and not rows[PER_FRAME].null_count:
        return [row[FRAME] for row in rows[PER_FRAME].to_pylist()]
    places = rows.select(["start", "frames", "fps"]).to_pylist()
    if any(row["fps"] is not None for row in places):
        raise CorpusError(
            "corpus.per_frame: the cache was planned without columns per frame, and with clips.fps, so "
            "that nobody knows any more which frames its clips are of. Nothing was changed. Make a new "
            "cache, or leave corpus.per_frame out."
        )
    return [list(range(row["start"], row["start"] + row["frames"])) for row in places]


def _merged(rows: pa.Table, values: pa.Array, name: str, there: pa.Array) -> pa.Array:
    """Return a column's values now: the corpus's where it has the source, else those of before."""
    if pc.all(there).as_py():
        return values
    if name not in rows.column_names:
        before = pa.nulls(rows.num_rows, values.type)
    else:
        before = rows[name].combine_chunks()
    merged = [
        new if is_there else old
        for new, old, is_there in zip(
            values.to_pylist(), before.to_pylist(), there.to_pylist(), strict=True
        )
    ]
    return pa.array(merged, values.type)


def _all_rows(
    known: KnownCache, shard: ShardId, rows: pa.Table, now: dict[str, pa.Array]
) -> pa.Table:
    """Return the columns of all rows of a shard; retired ones, which nobody reads, have nulls."""
    num_rows = known.num_rows(shard)
    at = pc.index_in(pa.array(range(num_rows), pa.int32()), value_set=rows["row"].combine_chunks())
    columns = {"row": pa.array(range(num_rows), pa.int32())}
    columns.update({name: values.take(at) for name, values in now.items()})
    return pa.table(columns)


def _differ(before: Any, now: pa.Array) -> np.ndarray[Any, Any]:
    """Tell which values differ. NaN is itself here, and types matter only through their values."""
    if before.type == now.type and not pa.types.is_nested(now.type):
        unequal = pc.fill_null(pc.not_equal(before, now), False)
        one_null = pc.xor(pc.is_null(before), pc.is_null(now))
        found = pc.or_(unequal, one_null)
        if pa.types.is_floating(now.type):
            both = pc.and_(pc.is_nan(before), pc.is_nan(now))
            found = pc.and_(found, pc.invert(pc.fill_null(both, False)))
        return np.asarray(found.to_numpy(zero_copy_only=False), bool)
    pairs = zip(before.to_pylist(), now.to_pylist(), strict=True)
    return np.array([repr(a) != repr(b) for a, b in pairs], bool)


def _as_known(corpus: pa.Table, known: KnownCache) -> pa.Table:
    """Return a corpus whose kept columns have their types of the cache. Raises CorpusError."""
    for name, kind in known.kept_types().items():
        if name in corpus.column_names and corpus[name].type != kind:
            try:
                is_struct = name == PER_FRAME
                column = corpus[name]
                values = with_types_of(column, kind) if is_struct else column.cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise CorpusError(
                    f"corpus.keep: {name} is {kind} in the cache, {corpus[name].type} now, and its values "
                    f"do not fit ({error}). Nothing was changed. Give the column its type of before, or "
                    "keep it under another name."
                ) from None
            corpus = corpus.set_column(corpus.column_names.index(name), name, values)
    return corpus


def plan_retry(
    planned: PlannedCache,
    failed: pa.Table,
    pool: Callable[[], Prober],
    on_probed: Callable[[], object] = lambda: None,
) -> tuple[Step, Difference]:
    """Plan failed clips and rejected sources again. failed: bucket, shard and row of clips.

    A clip whose file is as it was becomes a row of a new shard. A file that has changed counts as a new
    source, and all clips of the old one are retired. What still cannot be read stays as it is.
    """
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    difference, step = Difference(), Step(kind="retry")
    rows = _rows_at(known, failed)
    names = [*dict.fromkeys([*rows["source"].to_pylist(), *known.rejected])]
    sources = _as_corpus(known, names, rows)
    stamps = _stamps(planned, sources)
    sources = sources.append_column("stamp", stamps)
    probed = _probe(sources, pool, on_probed, None)
    difference.num_probed = probed.num_rows
    difference.num_rejected = len(known.rejected)
    rejected = set(_plan(planned, probed).rejected["source"].to_pylist())
    taken, again = [], set()
    for row in probed.select(["name", "identity"]).to_pylist():
        before = known.sources[row["name"]]
        same = row["identity"] == before.identity and not before.is_rejected
        usable = row["name"] not in rejected
        if same:
            again.add(row["name"])
        elif usable:
            (difference.repaired if before.is_rejected else difference.changed).append(row["name"])
        taken.append(usable and not same)
    fresh = probed.filter(pa.array(taken, pa.bool_()))
    add_plan(step, _plan(planned, fresh), fresh)
    _retire(step, known, difference.changed, CHANGED)
    _plan_again(step, rows.filter(_is_in(rows["source"], again)), RETRIED)
    difference.retried = sorted(again)
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


def _is_in(column: pa.ChunkedArray, names: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(sorted(names), pa.string()))


def _as_corpus(known: KnownCache, names: Sequence[str], rows: pa.Table) -> pa.Table:
    """Return known sources as a corpus has them, to be probed: captions and kept columns of their rows."""
    types = {name: rows.schema.field(name).type for name in kept_names(rows)} | known.kept_types()
    kept = [pa.field(name, kind) for name, kind in types.items()]
    labels: dict[str, dict[str, Any]] = {}
    for row in rows.select(["source", CAPTION, *kept_names(rows)]).to_pylist():
        labels.setdefault(row.pop("source"), row)
    for row in known.rejected_rows().to_pylist():
        labels.setdefault(
            row["source"], {f.name: row.get(f.name) for f in kept} | {CAPTION: row[CAPTION]}
        )
    table = [
        {"name": name, "url": source.url, "kind": source.kind, **labels.get(name, {})}
        for name in names
        if (source := known.sources[name])
    ]
    return pa.Table.from_pylist(table, schema=pa.schema([*SOURCE_SCHEMA, *kept]))
