"""Captions and kept columns that a corpus says otherwise now: a column version; no latent is touched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.clips import ClipsConfig
from latentcache.core.columns import differing, is_list, taken
from latentcache.core.names import NameIndex, Rows
from latentcache.core.records import ShardId
from latentcache.corpus.source_table import SEVERAL
from latentcache.format.columns import CAPTION
from latentcache.format.per_frame import PER_FRAME, recut, value_names
from latentcache.planning.kept_types import completed
from latentcache.planning.known import KnownCache
from latentcache.planning.known_values import Fitting, frame_numbers
from latentcache.planning.masks import Mask
from latentcache.planning.plan import kept_names
from latentcache.planning.step import Step


@dataclass(kw_only=True)
class Captions:
    """Clips that had one: num_lost have none now; num_kept keep theirs, for the corpus has none at all."""

    num_lost: int = 0
    num_kept: int = 0


def label_names(corpus: pa.Table) -> list[str]:
    """Return of which columns a corpus says something: captions and kept columns.

    If it has no caption at all, it has lost them all, like a kept column: it says nothing of captions. A
    kept column of that name with values is one like all others.
    """
    kept = kept_names(corpus)
    if corpus[CAPTION].null_count < corpus.num_rows:
        return [CAPTION, *kept]
    return [name for name in kept if name != SEVERAL or _has_values(corpus[name])]


def _has_values(column: pa.ChunkedArray) -> bool:
    if is_list(column.type):
        return bool(pc.any(pc.greater(pc.list_value_length(column), 0)).as_py())
    return bool(column.null_count < len(column))


def relabel(
    step: Step, known: KnownCache, corpus: pa.Table, leave: pa.ChunkedArray, fitting: Fitting
) -> Captions:
    """Give shards the captions and kept columns that their sources have now, where they differ.

    Those that the corpus no longer has stay as they are. leave: names of sources whose clips stay as
    they are, or do not count any more: what the corpus says is of another file. So it is, as `fitting`
    tells, where values per frame are not as many as the source's frames.
    """
    names, left, captions = label_names(corpus), NameIndex(leave), Captions()
    for group in known.looked_up(NameIndex(corpus["name"])):
        rows = group.rows
        at = fitting.fitting(rows, np.where(left.find(rows["source"]) < 0, group.at, -1))
        now = {CAPTION: rows[CAPTION].combine_chunks()} | {
            name: _merged(
                rows, _values_at(rows, name, corpus[name], at, fitting.clips), name, at >= 0
            )
            for name in names
        }
        differ = np.zeros(rows.num_rows, bool)
        for name, values in now.items():
            before = rows[name] if name in rows.column_names else pa.nulls(rows.num_rows)
            differ |= _differ(before, values)
        step.num_relabelled += int(differ.sum())
        had = pc.is_valid(rows[CAPTION])
        captions.num_lost += pc.sum(pc.and_(had, pc.is_null(now[CAPTION]))).as_py() or 0
        if CAPTION not in names:
            captions.num_kept += pc.sum(pc.and_(had, pa.array(at >= 0))).as_py() or 0
        for shard, part in group.slices():
            if differ[part].any():
                step.columns[shard] = _columns(known, shard, rows, now, part)
    return captions


def has_other_labels(sources: pa.Table, before: pa.Table, names: Sequence[str]) -> Mask:
    """Tell of which sources a corpus says other captions or kept columns than the cache's rows of them.

    names: see `label_names`.
    """
    at = NameIndex(before["source"]).find(sources["name"])
    differ = np.zeros(sources.num_rows, bool)
    for name in names:
        known = _parts(before[name], name) if name in before.column_names else {}
        for part, now in _parts(sources[name], name).items():
            was = taken(known[part], at) if part in known else pa.nulls(len(at))
            differ |= _differ(was, now)
    return differ


def _parts(column: pa.ChunkedArray, name: str) -> dict[str, pa.ChunkedArray]:
    """Return what is compared of a column: of values per frame each column by itself."""
    if name != PER_FRAME:
        return {name: column}
    return {part: pc.struct_field(column, part) for part in value_names(column.type)}


def _columns(
    known: KnownCache, shard: ShardId, rows: pa.Table, now: dict[str, pa.Array], part: slice
) -> pa.Table:
    """Return the columns of a shard, which has a part of some rows."""
    mine = rows.slice(part.start, part.stop - part.start)
    left_out = {n: mine[n].combine_chunks() for n in kept_names(mine) if n not in now}
    taken_in = {name: values[part.start : part.stop] for name, values in now.items()}
    return _all_rows(known, shard, mine, taken_in | left_out)


def _values_at(
    rows: pa.Table, name: str, values: pa.ChunkedArray, at: Rows, clips: ClipsConfig
) -> pa.Array:
    """Return the corpus's values for rows; those per frame cut to each clip."""
    found = taken(values, at)
    return recut(found, frame_numbers(rows, clips)) if name == PER_FRAME else found


def _merged(rows: pa.Table, values: pa.Array, name: str, there: Mask) -> pa.Array:
    """Return a column's values now: the corpus's where it has the source, else those of before."""
    if there.all():
        return values
    if name not in rows.column_names:
        before = pa.nulls(rows.num_rows, values.type)
    else:
        before = rows[name].combine_chunks()
    with contextlib.suppress(pa.ArrowException):
        both = pa.concat_arrays([values, before.cast(values.type)])
        return both.take(pa.array(np.arange(len(there)) + np.where(there, 0, len(there))))
    merged = [
        new if is_there else old
        for new, old, is_there in zip(
            values.to_pylist(), before.to_pylist(), there.tolist(), strict=True
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
    """Tell which values differ, see `differing`. Types matter only through their values."""
    return differing(before.cast(completed(before.type, now.type)), now)
