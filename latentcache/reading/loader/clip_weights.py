"""How often a loader takes each clip: a column of weights in the sample tables, as counts by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.posterior import sample_seed
from latentcache.core.records import MAX_WEIGHT
from latentcache.errors import ConfigError, did_you_mean
from latentcache.format.columns import WEIGHT
from latentcache.reading.cache import Cache
from latentcache.reading.loader.filters import Chosen
from latentcache.reading.order.philox import Float64, Int64
from latentcache.reading.order.repeats import Repeats, UInt32

_PHASE_BITS = 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True)
class ClipWeights:
    """The column that says how often a clip comes per epoch on average, and the loader's seed."""

    column: str = WEIGHT
    seed: int = 0

    def of(self, cache: Cache, chosen: Mapping[str, Chosen] | None) -> dict[str, BucketRepeats]:
        """Return how often the chosen clips of each bucket come; nothing if the cache has no weights.

        Reads the column from every sample table. A null counts as 1. Raises ConfigError for a column that
        is not there, or is not of numbers from 0 to MAX_WEIGHT.
        """
        if self.column not in cache.column_names:
            if self.column == WEIGHT:
                return {}
            raise ConfigError(
                f"clip_weight: the sample tables have no column {self.column!r}."
                f"{did_you_mean(self.column, cache.column_names)} They have: "
                f"{', '.join(cache.column_names)}"
            )
        found: dict[str, dict[int, tuple[Float64, UInt32]]] = {}
        for (bucket, shard), table in cache.scan([*dict.fromkeys(("key", "status", self.column))]):
            ok = table.filter(pc.equal(table["status"], "ok"))
            if chosen is not None and bucket in chosen:
                ok = ok.take(pa.array(chosen[bucket].rows(shard)))
            found.setdefault(bucket, {})[shard] = self._of_shard(ok)
        return {name: BucketRepeats(shards) for name, shards in found.items()}

    def _of_shard(self, ok: pa.Table) -> tuple[Float64, UInt32]:
        weights = self._numbers(ok[self.column])
        wrong = ~((weights >= 0) & (weights <= MAX_WEIGHT))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ConfigError(
                f"clip_weight: {self.column} of clip {ok['key'][at].as_py()!r} is {weights[at]:g}, and "
                f"should say how often a clip comes per epoch, from 0 to {MAX_WEIGHT}. Correct the column, "
                "or take another."
            )
        phases = np.zeros(len(weights), np.uint32)
        for n in np.flatnonzero(weights % 1).tolist():
            phases[n] = sample_seed(self.seed, ok["key"][n].as_py(), "weight") & _PHASE_BITS
        return weights, phases

    def _numbers(self, column: pa.ChunkedArray) -> Float64:
        kind = column.type
        if not any(f(kind) for f in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)):
            raise ConfigError(
                f"clip_weight: the column {self.column} holds {kind}, and a weight is a number"
            )
        weights: Float64 = (
            pc.fill_null(column.cast(pa.float64()), 1.0).to_numpy().astype(np.float64)
        )
        return weights


class BucketRepeats:
    """How often the clips of a bucket's shards come. shards: weights and phases of each one's clips."""

    def __init__(self, shards: Mapping[int, tuple[Float64, npt.NDArray[np.uint32]]]) -> None:
        #: In the order of the bucket's shards, as `Cache.shards` gives them.
        self._numbers = list(shards)
        self._at = {shard: n for n, shard in enumerate(self._numbers)}
        sizes = [len(weights) for weights, _ in shards.values()]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._repeats = Repeats(
            np.concatenate([weights for weights, _ in shards.values()]),
            np.concatenate([phases for _, phases in shards.values()]),
        )

    def num_samples(self, shards: Sequence[int], epoch: int | None) -> Int64:
        """Return how many samples each shard gives in an epoch, or in a mean one, int64."""
        repeats, starts = self._repeats, self._starts
        sums = repeats.mean_sums(starts) if epoch is None else repeats.sums(epoch, starts)
        return sums[[self._at[shard] for shard in shards]]

    def samples(self, shard: int, epoch: int, numbers: Int64) -> tuple[Int64, Int64]:
        """Return the chosen clip of each of a shard's samples, and its visit; see `Repeats.samples`."""
        start, stop = self._starts[self._at[shard] : self._at[shard] + 2].tolist()
        return self._repeats.samples(epoch, start, stop, numbers)
