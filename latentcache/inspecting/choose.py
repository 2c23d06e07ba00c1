"""Which clips of a cache to look at: those with given keys, or a sample from every bucket."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ClipId, ShardId
from latentcache.errors import ConfigError
from latentcache.format.paths import sample_path
from latentcache.format.tables import read_table
from latentcache.planning.planned import read_plan
from latentcache.reading.cache import Cache

#: Keys that an error names, and keys of a bucket that are compared letter by letter with a wrong one.
NAMED, COMPARED = 5, 10_000


def sample_places(cache: Cache, index: pa.Table, num: int, seed: int) -> list[ClipId]:
    """Return up to `num` ok clips: one from every bucket first, then evenly from all clips.

    index: the snapshot that `cache` was opened with. The result depends only on the arguments.
    """
    buckets, shards = index["bucket"].to_pylist(), index["shard"].to_pylist()
    num_ok = index["num_ok"].to_numpy().astype(np.int64)
    ends = np.cumsum(num_ok)
    counts = [int(num_ok[np.array(buckets) == name].sum()) for name in dict.fromkeys(buckets)]
    places = []
    for number in draw_stratified(counts, num, seed):
        at = int(np.searchsorted(ends, number, side="right"))
        position = number - int(ends[at] - num_ok[at])
        row = cache.rows(buckets[at], shards[at]).chunks[position].row
        places.append(ClipId(shard=ShardId(buckets[at], shards[at]), row=row))
    return places


def draw_stratified(counts: Sequence[int], num: int, seed: int) -> list[int]:
    """Draw up to `num` distinct numbers below sum(counts): one per group, the largest first, then any.

    counts: sizes of the consecutive groups that make up the range.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    starts = np.cumsum([0, *counts]).tolist()
    groups = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -counts[i])
    firsts = [starts[i] + int(rng.integers(counts[i])) for i in groups]
    others = rng.choice(starts[-1], min(num, starts[-1]), replace=False).tolist()
    return list(dict.fromkeys([*firsts, *others]))[:num]


def find_places(cache: Cache, keys: Sequence[str]) -> list[ClipId]:
    """Return where the ok clips with these keys are, in the order of the keys.

    Raises ConfigError for a key that the cache's plan does not have, naming similar ones, and for a clip
    without a latent, saying why.
    """
    wanted = pa.array(keys, pa.string())
    found: dict[str, ClipId] = {}
    near: dict[str, list[str]] = {key: [] for key in keys}
    for bucket in cache.manifest.buckets:
        plan = read_plan(cache.storage, cache.manifest, bucket.name)
        rows = pc.index_in(wanted, value_set=plan["key"].combine_chunks()).to_pylist()
        for key, row in zip(keys, rows, strict=True):
            if row is None:
                near[key] += _near(key, plan["key"])
            else:
                shard, row_of_shard = divmod(row, cache.manifest.shard_clips)
                found[key] = ClipId(shard=ShardId(bucket.name, shard), row=row_of_shard)
    problems = [
        problem for key in keys for problem in _problems(cache, key, found.get(key), near[key])
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return [found[key] for key in keys]


def _near(key: str, keys: pa.ChunkedArray) -> list[str]:
    """Return keys that contain the given text, or else look like it."""
    containing = keys.filter(pc.match_substring(keys, key)).slice(0, NAMED).to_pylist()
    return containing or difflib.get_close_matches(key, keys.slice(0, COMPARED).to_pylist(), NAMED)


def _problems(cache: Cache, key: str, place: ClipId | None, near: Sequence[str]) -> Iterator[str]:
    """Yield why a clip cannot be looked at, if it cannot."""
    if place is None:
        examples = near[:NAMED]
        if not examples:
            plan = read_plan(cache.storage, cache.manifest, cache.manifest.buckets[0].name)
            examples = plan["key"][:NAMED].to_pylist()
        said = "Similar keys" if near else "Some that it has"
        yield f"the cache has no clip with the key {key!r}. {said}: {', '.join(map(repr, examples))}"
    elif place.shard.number not in cache.shards(place.shard.bucket)[0]:
        yield f"clip {key!r} is planned but not encoded yet: resume the cache, and look again"
    elif place.row not in {chunk.row for chunk in cache.rows(*place.shard).chunks}:
        table = read_table(cache.storage, sample_path(*place.shard))
        failed = table.filter(pc.equal(table["row"], place.row)).to_pylist()[0]
        yield f"clip {key!r} failed, so there is no latent: {failed['reason']}: {failed['message']}"
