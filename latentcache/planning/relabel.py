"""Captions and kept columns that a corpus says otherwise now: a column version; no latent is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.errors import CorpusError
from latentcache.format.columns import CAPTION
from latentcache.format.per_frame import FRAME, PER_FRAME, recut
from latentcache.planning.known import KnownCache
from latentcache.planning.plan import kept_names
from latentcache.planning.step import Step


def relabel(step: Step, known: KnownCache, corpus: pa.Table, leave: pa.ChunkedArray) -> None:
    """Give shards the captions and kept columns that their sources have now, where they differ.

    Kept columns that the corpus no longer has stay as they are. leave: names of sources whose clips do not
    count any more.
    """
    if not known.sources:
        return
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
