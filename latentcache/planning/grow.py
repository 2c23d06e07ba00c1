"""Growing a cache: a corpus is compared with what is planned, and what differs becomes one step.

Sources are told by their names. A known one whose stamp (size and time of change, or ETag) is as it was
is not opened again. Captions and kept columns do not determine latents, so they change by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from latentcache.planning.masks import Mask, chosen, mask_of, no_names, same
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

    Names are Arrow's arrays: ten million of Python's strings take 0.7 GB.

    unreadable: known sources that give no clip as they are now; their clips stay, for a disk may be away.
    touched: those of another stamp and the same content.
    num_probed: sources that were opened; num_saved: those of them that a stopped run had probed before.
    notes: what is to be said of the new clips.
    """

    new: pa.ChunkedArray = field(default_factory=no_names)
    changed: pa.ChunkedArray = field(default_factory=no_names)
    repaired: pa.ChunkedArray = field(default_factory=no_names)
    rejected: pa.ChunkedArray = field(default_factory=no_names)
    gone: pa.ChunkedArray = field(default_factory=no_names)
    moved: pa.ChunkedArray = field(default_factory=no_names)
    touched: pa.ChunkedArray = field(default_factory=no_names)
    retried: pa.ChunkedArray = field(default_factory=no_names)
    unreadable: pa.ChunkedArray = field(default_factory=no_names)
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
    probed = _probe(chosen(corpus, mask), pool, on_probed, saved)
    difference.num_probed = probed.num_rows
    plan = _plan(planned, probed)
    fresh = _sort_out(probed, plan.rejected["source"], known, difference)
    difference.num_same = corpus.num_rows - fresh.num_rows
    step = Step(kind="grow" if planned.manifest.generations else "plan")
    if fresh.num_rows < probed.num_rows:
        del plan  # before there is another one
        plan = _plan(planned, fresh)
    add_plan(step, plan, fresh)
    auto = planned.config.cache.shard_clips == "auto"
    shard_clips = 0 if auto else planned.manifest.shard_clips
    difference.notes = notes(fresh, plan.buckets, planned.config.clips, shard_clips)
    difference.gone = known.sources.without(corpus["name"])
    pruned = difference.gone if prune else no_names()
    _retire(step, known, difference.changed, CHANGED)
    step.add_sources(as_sources(known, pruned), "gone")
    _retire(step, known, pruned, REMOVED)
    _move(step, known, corpus, fresh, difference)
    leave = pa.chunked_array([*difference.changed.chunks, *pruned.chunks], pa.string())
    _relabel(step, known, corpus, leave)
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


def _to_probe(corpus: pa.Table, known: KnownCache, check_content: bool) -> Mask:
    """Return which sources must be opened: new ones, rejected ones, those whose stamp says nothing."""
    at = known.sources.places(corpus["name"])
    stamps, what = (known.sources.table[name].take(at) for name in ("stamp", "what"))
    is_known = mask_of(pc.and_(pc.equal(corpus["stamp"], stamps), pc.not_equal(what, "rejected")))
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
    probed: pa.Table, rejected: pa.ChunkedArray, known: KnownCache, difference: Difference
) -> pa.Table:
    """Return the probed sources that are to be planned, and name what they are."""
    names = probed["name"]
    before = known.sources.table.select(["identity", "stamp", "what"])
    before = before.take(known.sources.places(names))
    is_known, failed = mask_of(pc.is_valid(before["what"])), mask_of(pc.is_in(names, rejected))
    was_rejected = mask_of(pc.equal(before["what"], "rejected"))
    was_planned = is_known & ~was_rejected
    unreadable = was_planned & failed
    as_before = was_rejected & failed & same(probed["stamp"], before["stamp"])
    as_before |= was_planned & same(probed["identity"], before["identity"])
    taken = ~(as_before | unreadable)
    masks = {
        "new": ~is_known & ~failed,
        "rejected": taken & failed,
        "repaired": was_rejected & ~failed,
        "changed": taken & was_planned,
        "unreadable": unreadable,
    }
    for what, mask in masks.items():
        setattr(difference, what, names.filter(pa.array(mask)))
    return chosen(probed, taken)


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
    rejected = mask_of(pc.is_in(sources["name"], value_set=plan.rejected["source"]))
    said = sources.rename_columns(
        ["source" if name == "name" else name for name in sources.column_names]
    ).select(["source", "url", "kind", "identity", "stamp"])
    step.add_sources(chosen(said, ~rejected), "planned")
    step.add_sources(chosen(said, rejected), "rejected")


def _retire(step: Step, known: KnownCache, names: pa.ChunkedArray, why: str) -> None:
    if len(names):
        rows = known.rows_of(names.to_pylist())
        if rows.num_rows:
            step.retired.append(retire(rows, why))


def _move(
    step: Step, known: KnownCache, corpus: pa.Table, fresh: pa.Table, difference: Difference
) -> None:
    """Say where known sources are now that have moved, and the stamps of those that were touched.

    Of a signed URL only the place counts. Others have the same content, and are not opened again.
    """
    at = known.sources.places(corpus["name"])
    moved = _elsewhere(corpus["url"], known.sources.table["url"], at)
    stamps = known.sources.table["stamp"].take(at)
    touched = mask_of(pc.is_valid(corpus["stamp"])) & ~same(corpus["stamp"], stamps) & ~moved
    # What cannot be used as it is now stays as it was, and is named again the next time.
    left = [*fresh["name"].chunks, *difference.unreadable.chunks]
    others = pc.is_in(corpus["name"], value_set=pa.chunked_array(left, pa.string()))
    stays = ~mask_of(others)
    difference.moved = _say(step, known, corpus, moved & stays, "moved")
    difference.touched = _say(step, known, corpus, touched & stays, "touched")


def _say(step: Step, known: KnownCache, corpus: pa.Table, mask: Mask, what: str) -> pa.ChunkedArray:
    """Say something of known sources that give clips; returns their names."""
    said = corpus.select(["name", "url", "kind", "stamp"]).filter(pa.array(mask))
    before = known.sources.table.select(["identity", "what"])
    before = before.take(known.sources.places(said["name"]))
    said = said.append_column("identity", before["identity"])
    said = said.filter(pc.not_equal(before["what"], "rejected"))
    names = ["source" if name == "name" else name for name in said.column_names]
    schema = pa.schema([(name, pa.string()) for name in names])
    step.add_sources(said.rename_columns(names).cast(schema), what)
    return said["name"]


def _elsewhere(urls: pa.ChunkedArray, known: pa.ChunkedArray, at: pa.ChunkedArray) -> Mask:
    """Tell which URLs are of another place than those known at `at`; null there: of no known source."""
    before = known.cast(pa.large_string()).combine_chunks()  # of more than 2 GB, some can be taken
    found = [np.zeros(0, bool)]
    for start in range(0, len(urls), CHUNK_ROWS):
        now = urls.slice(start, CHUNK_ROWS).cast(pa.large_string())
        then = before.take(at.slice(start, CHUNK_ROWS))
        found.append(mask_of(pc.not_equal(_places(now), _places(then))))
    return np.concatenate(found)


def _places(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return URLs without their queries."""
    parts = [pc.split_pattern(chunk, "?", max_splits=1) for chunk in urls.chunks]
    return pa.chunked_array([pc.list_element(each, 0) for each in parts], urls.type)


def _relabel(step: Step, known: KnownCache, corpus: pa.Table, leave: pa.ChunkedArray) -> None:
    """Give shards the captions and kept columns that their sources have now, where they differ.

    Kept columns that the corpus no longer has stay as they are. leave: names of sources
    whose clips do not count any more.
    """
    values_of = {name: corpus[name].combine_chunks() for name in (CAPTION, *kept_names(corpus))}
    value_set = corpus["name"].combine_chunks()
    for shard, rows, at in known.looked_up(value_set):
        there = pc.and_(pc.is_valid(at), pc.invert(pc.is_in(rows["source"], value_set=leave)))
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
    taken, again = list[bool](), set[str]()
    changed, repaired = list[str](), list[str]()
    for row in probed.select(["name", "identity"]).to_pylist():
        before = known.sources[row["name"]]
        is_same = row["identity"] == before.identity and not before.is_rejected
        usable = row["name"] not in rejected
        if is_same:
            again.add(row["name"])
        elif usable:
            (repaired if before.is_rejected else changed).append(row["name"])
        taken.append(usable and not is_same)
    fresh = probed.filter(pa.array(taken, pa.bool_()))
    add_plan(step, _plan(planned, fresh), fresh)
    difference.changed, difference.repaired, difference.retried = (
        pa.chunked_array([pa.array(names, pa.string())])
        for names in (changed, repaired, sorted(again))
    )
    _retire(step, known, difference.changed, CHANGED)
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
