"""Which clips follow one another in their source, and how many parts begin in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.dtypes import Array
from latentcache.core.records import Bucket
from latentcache.errors import ConfigError
from latentcache.format.per_frame import PER_FRAME
from latentcache.reading.cache import Cache
from latentcache.reading.loader.filters import Chosen
from latentcache.reading.order.philox import Int64
from latentcache.reading.views.adapt import AnyView
from latentcache.reading.views.starts import Run, legal_starts

#: Clips whose starts are worked out at a time.
NUM_TOGETHER = 1 << 14


class Place(NamedTuple):
    """A clip: its shard, and its number among the shard's ok rows."""

    shard: int
    row: int


class Runs:
    """A bucket's chosen clips in the order of their shards and rows: what follows each, what begins in it.

    shards: the bucket's, in order. tables: of each, its chosen ok rows, with their number as `row`.
    """

    def __init__(
        self,
        run: Run,
        view: AnyView,
        cache: Cache,
        bucket: str,
        shards: Sequence[int],
        tables: Mapping[int, pa.Table],
    ) -> None:
        self._run, self._spec, self._frames = run, cache.spec, Bucket.parse(bucket).frames
        self._num_latents = cache.spec.latent_frames(self._frames)
        lengths = [tables[shard].num_rows for shard in shards]
        self._firsts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        table = pa.concat_tables([tables[shard] for shard in shards], promote_options="permissive")
        self._shards = np.repeat(np.asarray(shards, np.int64), lengths)
        self._rows: Int64 = table["row"].to_numpy()
        self._next = np.full(len(table), -1, np.int64)
        if run.goes_on:
            self._next = _following(table, self._frames)
        segments = None if run.segment is None else _segments(table, run.segment, self._frames)
        self._counts = self._count(view, segments)

    def _count(self, view: AnyView, segments: Array | None) -> Int64:
        """Return how many samples each clip gives."""
        counts = np.zeros(len(self._rows), np.int64)
        chains = self._chains(np.arange(len(self._rows)))
        there = (chains >= 0).sum(axis=1)
        for num in range(1, chains.shape[1] + 1):
            clips = np.flatnonzero(there == num)
            for first in range(0, len(clips), NUM_TOGETHER):
                some = clips[first : first + NUM_TOGETHER]
                values = None
                if segments is not None:
                    values = segments[chains[some, :num]].reshape(len(some), -1)
                legal = legal_starts(self._run.span, self._spec, self._frames, num, values)
                counts[some] = view.counts(legal)
        return counts

    def _chains(self, clips: Int64) -> Int64:
        """Return each clip and those that follow it, [N, 1 + most]; -1 where there is none."""
        chains = [clips]
        for _ in range(self._run.num_next(self._num_latents)):
            last = chains[-1]
            chains.append(np.where(last < 0, -1, self._next[last]))
        return np.stack(chains, axis=1)

    @property
    def num_samples(self) -> Int64:
        """Samples of each shard, int64."""
        sums = np.concatenate([[0], np.cumsum(self._counts)])
        return np.asarray(sums[self._firsts[1:]] - sums[self._firsts[:-1]], np.int64)

    def find(self, at: int, sample: int) -> tuple[int, int, list[Place]]:
        """Return of a shard's sample the clip's ok row, its number in the clip, and the clips that follow.

        at: which of the bucket's shards.
        """
        first, last = self._firsts[at : at + 2].tolist()
        ends = np.cumsum(self._counts[first:last])
        clip = int(np.searchsorted(ends, sample, side="right"))
        number = sample - int(ends[clip] - self._counts[first + clip])
        chain = [n for n in self._chains(np.array([first + clip]))[0].tolist() if n >= 0]
        places = [Place(int(self._shards[n]), int(self._rows[n])) for n in chain]
        return places[0].row, number, places[1:]


def make_runs(
    run: Run, view: AnyView, cache: Cache, chosen: Mapping[str, Chosen] | None
) -> dict[str, Runs]:
    """Return the runs of each bucket. Reads some columns of every sample table. Raises ConfigError."""
    columns = ["status", "source", "start", "fps"] + ([PER_FRAME] if run.segment else [])
    tables: dict[str, dict[int, pa.Table]] = {name: {} for name in cache.buckets}
    for (bucket, shard), table in cache.scan(columns):
        ok = table.filter(pc.equal(table["status"], "ok"))
        rows = np.arange(len(ok))
        if chosen is not None and bucket in chosen:
            rows = chosen[bucket].rows(shard)
        tables[bucket][shard] = ok.take(pa.array(rows)).append_column("row", pa.array(rows))
    return {
        bucket: Runs(run, view, cache, bucket, cache.shards(bucket)[0].tolist(), found)
        for bucket, found in tables.items()
        if any(table.num_rows for table in found.values())
    }


def _following(table: pa.Table, frames: int) -> Int64:
    """Return which clip begins where each ends, in the same source at the same rate; -1 for none.

    Also none where several do, as in merged caches whose sources share a name.
    """
    sources = _numbers(table["source"])
    rates = _numbers(table["fps"])
    start = pc.fill_null(table["start"], -1).to_numpy()
    known, codes = np.unique(np.concatenate([start, start + frames]), return_inverse=True)
    clips = (sources * (rates.max(initial=0) + 1) + rates) * len(known)
    here, wanted = clips + codes[: len(start)], clips + codes[len(start) :]
    order = np.argsort(here, kind="stable")
    at = np.searchsorted(here[order], wanted, side="left")
    num = np.searchsorted(here[order], wanted, side="right") - at
    found = (num == 1) & (start >= 0)
    return np.where(found, order[np.minimum(at, len(order) - 1)], -1)


def _numbers(values: pa.ChunkedArray) -> Int64:
    """Return a number for each value, the same for the same ones, null included."""
    encoded = values.combine_chunks().dictionary_encode("encode")
    chunk: Any = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return np.asarray(chunk.indices.to_numpy(zero_copy_only=False), np.int64)


def _segments(table: pa.Table, name: str, frames: int) -> Array:
    """Return a column's value at each frame of each clip, [N, T]. Raises ConfigError."""
    lists = pc.struct_field(table[PER_FRAME].combine_chunks(), name)
    if lists.null_count:
        raise ConfigError(
            f"segment: {lists.null_count} clips have no values of {name}, so where their segments end is "
            "unknown. Leave them out with where=, or give segment=None: then windows go across segments."
        )
    flat = lists.flatten()
    if (
        pa.types.is_list(flat.type)
        or pc.any(pc.not_equal(pc.list_value_length(lists), frames)).as_py()
    ):
        raise ConfigError(
            f"segment: {name} must have one number per frame of a clip, and it has vectors, or another "
            "number of them. Name another column, or give segment=None."
        )
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, frames)
