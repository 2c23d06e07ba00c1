"""Growing a cache: a corpus is compared with what is planned, and what differs becomes one step.

Sources are told by their names. A known one whose stamp (size and time of change, or ETag) is as it was
is not opened again. Captions and kept columns do not determine latents, so they change by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import NameIndex, Rows
from latentcache.corpus.probe import Prober, probe_sources
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.stamps import stamp_groups
from latentcache.format.schemas import PROBE_SCHEMA
from latentcache.planning.kept_types import as_known
from latentcache.planning.known import KnownCache, as_gone, retire
from latentcache.planning.known_values import NAMED, Fitting, known_values
from latentcache.planning.masks import CHUNK_ROWS, Mask, chosen, mask_of, no_names, same
from latentcache.planning.moves import differ, part_of_file, say_moves
from latentcache.planning.notes import Note, notes
from latentcache.planning.plan import Plan, make_plan
from latentcache.planning.planned import PlannedCache
from latentcache.planning.relabel import Captions, has_other_labels, label_names, relabel
from latentcache.planning.step import Step
from latentcache.storage.spill import Spill

#: Why rows are retired.
CHANGED, REMOVED, COMPLETED = "source changed", "removed", "completed"


@dataclass(kw_only=True)
class Difference:
    """How a corpus differs from what a cache knows: names of sources, and clips with other captions.

    Names are Arrow's arrays: ten million of Python's strings take 0.7 GB.

    unreadable: known sources that give no clip as they are now, or whose values per frame do not fit; their
    clips stay, for a disk may be away, and so do captions and kept columns, for nobody knows of which video
    those of the corpus are. why: what is wrong with a few of them.
    completed: known sources of which the cache was given some clips only, and whose content is as it was;
    all of their clips are planned again.
    touched: those of another stamp and the same content.
    without_values: changed sources of which only the corpus has the values per frame; their clips stay.
    rewritten: sources in files that were written again, of which only the corpus says where they are; as
    `without_values`, of a retry. unstamped: sources of which that cannot be told, and which are not as they
    were; their clips stay, of a retry.
    num_probed: sources that were opened; num_saved: those of them that a stopped run had probed before.
    notes: what is to be said of the new clips.
    """

    new: pa.ChunkedArray = field(default_factory=no_names)
    changed: pa.ChunkedArray = field(default_factory=no_names)
    completed: pa.ChunkedArray = field(default_factory=no_names)
    repaired: pa.ChunkedArray = field(default_factory=no_names)
    rejected: pa.ChunkedArray = field(default_factory=no_names)
    gone: pa.ChunkedArray = field(default_factory=no_names)
    moved: pa.ChunkedArray = field(default_factory=no_names)
    touched: pa.ChunkedArray = field(default_factory=no_names)
    retried: pa.ChunkedArray = field(default_factory=no_names)
    unreadable: pa.ChunkedArray = field(default_factory=no_names)
    without_values: pa.ChunkedArray = field(default_factory=no_names)
    rewritten: pa.ChunkedArray = field(default_factory=no_names)
    unstamped: pa.ChunkedArray = field(default_factory=no_names)
    num_same: int = 0
    num_probed: int = 0
    num_saved: int = 0
    num_rejected: int = 0
    num_relabelled: int = 0
    captions: Captions = field(default_factory=Captions)
    notes: list[Note] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)


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
    whose stamps are as they were, and all new URLs are noted. Raises CorpusError, StorageError.
    """
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    spill = Spill()
    corpus = as_known(corpus, known.kept_types()).append_column("stamp", stamps_of(planned, corpus))
    difference = Difference()
    values = known_values(known, corpus, planned.config.clips)
    at = known.sources.find(corpus["name"])
    mask = _to_probe(corpus, known, at, check_content)
    mask |= NameIndex(values.uncounted).find(corpus["name"]) >= 0
    probed = probe(chosen(corpus, mask, spill.put), pool, on_probed, saved)
    difference.num_probed = probed.num_rows
    plan = plan_sources(planned, probed, spill, values.widths)
    fresh = _sort_out(probed, plan.rejected["source"], known, difference, label_names(corpus))
    difference.why = _reasons(plan.rejected, difference.unreadable)
    step = Step(kind="grow" if planned.manifest.generations else "plan")
    if fresh.num_rows < probed.num_rows:
        del plan  # before there is another one
        plan = plan_sources(planned, fresh, spill, values.widths)
    add_plan(step, plan, fresh)
    auto = planned.config.cache.shard_clips == "auto"
    shard_clips = 0 if auto else planned.manifest.shard_clips
    difference.notes = notes(fresh, plan.buckets, planned.config.clips, shard_clips)
    difference.gone = known.sources.without(at)
    pruned = difference.gone if prune else no_names()
    retire_sources(step, known, difference.changed, CHANGED)
    retire_sources(step, known, difference.completed, COMPLETED)
    step.add_sources(as_gone(known, pruned), "gone")
    retire_sources(step, known, pruned, REMOVED)
    if known.sources:
        index = NameIndex(corpus["name"])
        left = [*fresh["name"].chunks, *difference.unreadable.chunks]
        # What cannot be used as it is now stays as it was, and is named again the next time.
        at[index.find(pa.chunked_array(left, pa.string()))] = -1
        unlike = (difference.changed, difference.completed, difference.unreadable)
        leave = pa.chunked_array([c for names in unlike for c in names.chunks], pa.string())
        fitting = Fitting(corpus, planned.config.clips, values.widths, probed)
        difference.captions = relabel(step, known, corpus, leave, fitting)
        _add_misfits(difference, corpus, fitting)
        difference.moved, difference.touched = say_moves(
            step, planned, known, corpus, at, all_urls=check_content
        )
    difference.num_same = corpus.num_rows - fresh.num_rows - len(difference.unreadable)
    difference.num_relabelled = step.num_relabelled
    return step, difference


def _reasons(rejected: pa.Table, names: pa.ChunkedArray) -> dict[str, str]:
    """Return why the first of some rejected sources give no clip."""
    rows = taken(rejected["message"], NameIndex(rejected["source"]).find(names[:NAMED]))
    return {
        n: why for n, why in zip(names[:NAMED].to_pylist(), rows.to_pylist(), strict=True) if why
    }


def _add_misfits(difference: Difference, corpus: pa.Table, fitting: Fitting) -> None:
    """Name sources whose values per frame do not fit."""
    misfits = chosen(corpus["name"], fitting.misfits, Spill().column)
    chunks = [*difference.unreadable.chunks, *misfits.chunks]
    difference.unreadable = pa.chunked_array(chunks, pa.string())
    difference.why |= fitting.why


def stamps_of(planned: PlannedCache, sources: pa.Table) -> pa.ChunkedArray:
    """Return the stamps that the files of sources have now."""
    config = planned.config.corpus
    urls = (batch["url"].to_pylist() for batch in _batches(sources, ["url"]))
    stamps = stamp_groups(urls, config.storage_options, config.schemes)
    return Spill().joined((pa.array(some, pa.string()) for some in stamps), pa.string())


def _batches(table: pa.Table, columns: list[str]) -> list[pa.RecordBatch]:
    """Cut into parts of as many rows as Python objects can be made of at once."""
    batches: list[pa.RecordBatch] = table.select(columns).to_batches(max_chunksize=CHUNK_ROWS)
    return batches


def _to_probe(corpus: pa.Table, known: KnownCache, at: Rows, check_content: bool) -> Mask:
    """Return which sources must be opened: new, rejected and partial ones, those whose stamp says nothing.

    The stamp of a file says nothing of another part of it. at: their rows in what is known.
    """
    to_probe = np.ones(len(at), bool)
    if check_content or not known.sources:
        return to_probe
    for start, rows in _pieces(at):
        stamps, what, urls = (
            taken(known.sources.table[name], rows) for name in ("stamp", "what", "url")
        )
        now = corpus.slice(start, len(rows))
        is_same = pc.equal(now["stamp"], stamps)
        is_known = mask_of(pc.and_(is_same, pc.equal(what, "planned")))
        to_probe[start : start + len(rows)] = ~is_known | differ(now["url"], urls, part_of_file)
    return to_probe


def _pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Cut into parts, each with where it starts."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield start, rows[start : start + CHUNK_ROWS]


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
    probed: pa.Table,
    rejected: pa.ChunkedArray,
    known: KnownCache,
    difference: Difference,
    labels: Sequence[str],
) -> pa.Table:
    """Return the probed sources that are to be planned, and name what they are.

    labels: see `label_names`.
    """
    names, spill = probed["name"], Spill()
    at, failed = known.sources.find(names), NameIndex(rejected).find(names) >= 0
    was_rejected, was_partial, as_before = (np.zeros(len(at), bool) for _ in range(3))
    for start, rows in _pieces(at):
        here, now = slice(start, start + len(rows)), probed.slice(start, len(rows))
        before = {n: taken(known.sources.table[n], rows) for n in ("identity", "stamp", "what")}
        was_rejected[here] = mask_of(pc.equal(before["what"], "rejected"))
        was_partial[here] = mask_of(pc.equal(before["what"], "partial"))
        stamp, identity = (same(now[name], before[name]) for name in ("stamp", "identity"))
        as_before[here] = np.where(was_rejected[here], failed[here] & stamp, identity)
    is_known = at >= 0
    as_before &= is_known
    if (still := as_before & was_rejected).any():  # `resume --retry-failed` knows no corpus
        now = chosen(probed, still, spill.put)
        as_before[still] = ~has_other_labels(now, known.rejected_rows(), labels)
    was_planned = is_known & ~was_rejected
    unreadable = was_planned & failed
    completed = as_before & was_partial & ~failed
    taken_in = ~(as_before | unreadable) | completed
    masks = {
        "new": ~is_known & ~failed,
        "rejected": taken_in & failed,
        "repaired": was_rejected & ~failed,
        "changed": taken_in & was_planned & ~completed,
        "completed": completed,
        "unreadable": unreadable,
    }
    for what, mask in masks.items():
        setattr(difference, what, chosen(names, mask, spill.column))
    return chosen(probed, taken_in, spill.put)


def plan_sources(
    planned: PlannedCache,
    sources: pa.Table,
    spill: Spill | None = None,
    widths: dict[str, int] | None = None,
) -> Plan:
    """Plan the clips of probed sources. spill: where they go. Raises MachineError if it is full.

    widths: of the vectors per frame that are known; those of further columns are added.
    """
    config, spec = planned.config, planned.manifest.spec
    without = sources.drop_columns(["stamp"])
    keep = (spill or Spill()).put
    shard_clips = planned.manifest.shard_clips
    return make_plan(without, config.clips, spec, shard_clips=shard_clips, keep=keep, widths=widths)


def add_plan(step: Step, plan: Plan, sources: pa.Table) -> None:
    """Add the clips of a plan, and what it says of its sources."""
    for bucket, table in plan.buckets.items():
        step.clips.setdefault(bucket, []).append(table)
    if plan.rejected.num_rows:
        step.rejected = plan.rejected
    rejected = NameIndex(plan.rejected["source"]).find(sources["name"]) >= 0
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
