"""Growing a cache: a corpus is compared with what is planned, and what differs becomes one step.

Sources are told by their names. A known one whose stamp (size and time of change, or ETag) is as it was
is not opened again. Captions and kept columns do not determine latents, so they change by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.corpus.probe import Prober, probe_sources
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.stamps import stamp_groups
from latentcache.errors import CorpusError
from latentcache.format.per_frame import PER_FRAME, with_types_of
from latentcache.format.schemas import PROBE_SCHEMA
from latentcache.planning.known import KnownCache, as_sources, retire
from latentcache.planning.masks import Mask, chosen, mask_of, no_names, same
from latentcache.planning.notes import Note, notes
from latentcache.planning.plan import CHUNK_ROWS, Plan, make_plan
from latentcache.planning.planned import PlannedCache
from latentcache.planning.relabel import relabel
from latentcache.planning.step import Step
from latentcache.storage.spill import Spill

#: Why rows are retired.
CHANGED, REMOVED = "source changed", "removed"


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
    spill = Spill()
    stamps = spill.column(stamps_of(planned, corpus))
    corpus = _as_known(corpus, known).append_column("stamp", stamps)
    difference = Difference()
    mask = _to_probe(corpus, known, check_content)
    probed = probe(chosen(corpus, mask), pool, on_probed, saved)
    difference.num_probed = probed.num_rows
    plan = plan_sources(planned, probed, spill)
    fresh = _sort_out(probed, plan.rejected["source"], known, difference)
    difference.num_same = corpus.num_rows - fresh.num_rows
    step = Step(kind="grow" if planned.manifest.generations else "plan")
    if fresh.num_rows < probed.num_rows:
        del plan  # before there is another one
        plan = plan_sources(planned, fresh, spill)
    add_plan(step, plan, fresh)
    auto = planned.config.cache.shard_clips == "auto"
    shard_clips = 0 if auto else planned.manifest.shard_clips
    difference.notes = notes(fresh, plan.buckets, planned.config.clips, shard_clips)
    difference.gone = known.sources.without(corpus["name"])
    pruned = difference.gone if prune else no_names()
    retire_sources(step, known, difference.changed, CHANGED)
    step.add_sources(as_sources(known, pruned), "gone")
    retire_sources(step, known, pruned, REMOVED)
    _move(step, known, corpus, fresh, difference)
    leave = pa.chunked_array([*difference.changed.chunks, *pruned.chunks], pa.string())
    relabel(step, known, corpus, leave)
    difference.num_relabelled = step.num_relabelled
    return step, difference


def stamps_of(planned: PlannedCache, sources: pa.Table) -> pa.ChunkedArray:
    """Return the stamps that the files of sources have now."""
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


def probe(
    sources: pa.Table,
    pool: Callable[[], Prober],
    on_probed: Callable[[], object],
    saved: SavedProbes | None,
) -> pa.Table:
    """Return sources with what probing finds of them."""
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


def plan_sources(planned: PlannedCache, sources: pa.Table, spill: Spill | None = None) -> Plan:
    """Plan the clips of probed sources. spill: where they go. Raises MachineError if it is full."""
    config, spec = planned.config, planned.manifest.spec
    without = sources.drop_columns(["stamp"])
    keep = (spill or Spill()).put
    shard_clips = planned.manifest.shard_clips
    return make_plan(without, config.clips, spec, shard_clips=shard_clips, keep=keep)


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


def retire_sources(step: Step, known: KnownCache, names: pa.ChunkedArray, why: str) -> None:
    """Retire all rows of sources that count. why: CHANGED or another reason."""
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
