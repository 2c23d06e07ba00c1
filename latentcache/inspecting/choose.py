"""Which clips of a cache to look at: those with given keys, or a sample from every bucket."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ClipId, ShardId
from latentcache.errors import ConfigError
from latentcache.format.changes import Standing
from latentcache.format.paths import sample_path
from latentcache.format.tables import read_table
from latentcache.planning.planned import PlanReader
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
    reader = PlanReader(cache.storage, cache.manifest)
    found: dict[str, ClipId] = {}
    near: dict[str, list[str]] = {key: [] for key in keys}
    standing = reader.changes.among(cache.committed)
    for bucket in cache.manifest.buckets:
        for plan in reader.plans(bucket.name):
            found.update(_in_plan(bucket.name, plan, keys, standing))
            for key in keys:
                near[key] += _near(key, plan["key"])
    problems = [
        problem for key in keys for problem in _problems(cache, key, found.get(key), near[key])
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return [found[key] for key in keys]


def _in_plan(
    bucket: str, plan: pa.Table, keys: Sequence[str], standing: Standing
) -> Iterator[tuple[str, ClipId]]:
    """Yield the keys that a plan has, and where; clips that no longer count are passed over."""
    chosen = plan.filter(pc.is_in(plan["key"], value_set=pa.array(keys, pa.string())))
    for key, shard, row in zip(
        *(chosen[n].to_pylist() for n in ("key", "shard", "row")), strict=True
    ):
        place = ShardId(bucket, shard)
        if row not in standing.retired.get(place, ()):
            yield key, ClipId(shard=place, row=row)


def _near(key: str, keys: pa.ChunkedArray) -> list[str]:
    """Return keys that contain the given text, or else look like it."""
    containing = keys.filter(pc.match_substring(keys, key)).slice(0, NAMED).to_pylist()
    return containing or difflib.get_close_matches(key, keys.slice(0, COMPARED).to_pylist(), NAMED)


def _problems(cache: Cache, key: str, place: ClipId | None, near: Sequence[str]) -> Iterator[str]:
    """Yield why a clip cannot be looked at, if it cannot."""
    if place is None:
        examples = near[:NAMED]
        if not examples:
            reader = PlanReader(cache.storage, cache.manifest)
            plan = next(reader.plans(cache.manifest.buckets[0].name))
            examples = plan["key"][:NAMED].to_pylist()
        said = "Similar keys" if near else "Some that it has"
        yield f"the cache has no clip with the key {key!r}. {said}: {', '.join(map(repr, examples))}"
    elif place.shard.number not in cache.shards(place.shard.bucket)[0]:
        yield f"clip {key!r} is planned but not encoded yet: resume the cache, and look again"
    elif place.row not in {chunk.row for chunk in cache.rows(*place.shard).chunks}:
        table = read_table(cache.storage, sample_path(*place.shard))
        said = table.filter(pc.equal(table["row"], place.row)).select(["reason", "message"])
        failed = said.to_pylist()[0]
        yield f"clip {key!r} failed, so there is no latent: {failed['reason']}: {failed['message']}"
