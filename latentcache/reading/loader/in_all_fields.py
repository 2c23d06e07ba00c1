"""Which clips all fields of a loader have: of the texts, and the paths, that the clips have now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from latentcache.core.records import ShardId
from latentcache.reading.cache import Cache
from latentcache.reading.fields import FieldReader
from latentcache.reading.loader.filters import Chosen
from latentcache.reading.snapshot import NUM_THREADS
from latentcache.reading.stale import CHANGED_SINCE
from latentcache.reading.text_choice import without_common_text

Mask = npt.NDArray[np.bool_]
Groups = Sequence[Sequence[FieldReader]]


def choose_clips(
    cache: Cache,
    readers: Sequence[FieldReader],
    groups: Groups,
    chosen: Mapping[str, Chosen] | None,
) -> tuple[dict[str, Chosen] | None, Counter[str]]:
    """Return which clips are in all fields, of those chosen before, and how many each leaves out.

    A clip of which a group of fields has no text in common is in none of them; one whose value is of former
    texts is counted by itself. None: all, so that the order is that without fields. Reads sample tables of
    the shards that a field does not have wholly, and what shards' columns were if they have changed since.
    """
    find_stale(cache, readers)
    left_out: Counter[str] = Counter()
    found: dict[str, Chosen] = {}
    for bucket in cache.buckets:
        masks = {}
        shards, nums = cache.shards(bucket)
        for shard, num_ok in zip(shards.tolist(), nums.tolist(), strict=True):
            mask = np.ones(num_ok, np.bool_)
            if chosen is not None and bucket in chosen:
                mask[:] = False
                mask[chosen[bucket].rows(shard)] = True
            lacking = _lacking(cache, readers, groups, ShardId(bucket, shard))
            masks[shard] = _masked(cache, ShardId(bucket, shard), mask, lacking, left_out)
        if masks:
            found[bucket] = Chosen(masks)
    if not left_out:
        return (None if chosen is None else dict(chosen)), left_out
    return found, left_out


def find_stale(cache: Cache, readers: Sequence[FieldReader]) -> None:
    """Find out which values are of former texts, shard by shard, for what is read serves all fields."""
    maybe = cache.committed.intersection(
        shard for reader in readers for shard in reader.maybe_stale
    )

    def look(shard: ShardId) -> None:
        for reader in readers:
            reader.stale(*shard)

    if maybe:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(look, sorted(maybe)))


def _lacking(
    cache: Cache, readers: Sequence[FieldReader], groups: Groups, shard: ShardId
) -> dict[str, frozenset[int]]:
    """Return the rows of a shard that each field lacks, if any, by what is said of them."""
    num_rows = cache.manifest.num_rows(shard)
    found = {reader.name: reader.lacks(*shard, num_rows) for reader in readers}
    for group in groups:
        apart = without_common_text(group, *shard)
        found.update({reader.name: found[reader.name] | apart for reader in group})
    stale = {
        f"{reader.name}: {CHANGED_SINCE}": reader.stale(*shard) - found[reader.name]
        for reader in readers
    }
    return {what: rows for what, rows in (found | stale).items() if rows}


def _masked(
    cache: Cache,
    shard: ShardId,
    mask: Mask,
    lacking: Mapping[str, frozenset[int]],
    left_out: Counter[str],
) -> Mask:
    """Return the mask without rows that are lacking, which are counted in left_out."""
    if not lacking:
        return mask
    rows, kept = cache.ok_rows(*shard), mask.copy()
    for what, without in lacking.items():
        out = np.isin(rows, list(without))
        if num := int((mask & out).sum()):
            left_out[what] += num
        kept &= ~out
    return kept
