"""Which clips of a cache are copied: all, those that a condition keeps, or those with given keys."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.records import ShardId
from latentcache.core.units import some_of
from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache
from latentcache.reading.loader.filters import choose, nothing_fits


@dataclass(frozen=True, kw_only=True)
class Selection:
    """where: a condition on columns, as text; keys: of clips. Without either all clips, else ok ones."""

    where: str | None = None
    keys: frozenset[str] | None = None

    @property
    def is_all(self) -> bool:
        """Whether everything is copied, failed clips and rejected sources too."""
        return self.where is None and self.keys is None

    def in_words(self) -> str:
        """Return what a generation says of it; the same words, the same clips."""
        parts = [] if self.where is None else [f"where {self.where}"]
        if self.keys is not None:
            digest = hashlib.sha256("\n".join(sorted(self.keys)).encode("utf-8", "surrogatepass"))
            parts.append(f"{len(self.keys)} keys, SHA-256 {digest.hexdigest()}")
        return "; ".join(parts)


def select_rows(cache: Cache, selection: Selection) -> Mapping[ShardId, Collection[int]] | None:
    """Return the selected rows of each shard, None for all rows.

    Raises ConfigError where a condition makes no sense or keeps nothing, or no ok clip has one of the keys.
    """
    if selection.is_all:
        return None
    found: Mapping[ShardId, Collection[int]] | None = None
    if selection.where is not None:
        found = _rows_where(cache, selection.where)
    if selection.keys is not None:
        with_keys = _rows_with_keys(cache, selection.keys)
        found = with_keys if found is None else _both(found, with_keys)
    return found


def _rows_where(cache: Cache, where: str) -> Mapping[ShardId, Collection[int]]:
    found: dict[ShardId, Collection[int]] = {}
    for bucket, chosen in choose(cache, where).items():
        for number in chosen.shards.tolist():
            positions = chosen.rows(number).tolist()
            if positions:
                chunks = cache.rows(bucket, number).chunks
                found[ShardId(bucket, number)] = {chunks[position].row for position in positions}
    if not found:
        raise ConfigError(
            f"No clip is selected, so there is nothing to copy: {nothing_fits(cache, where)} Nothing was "
            "written."
        )
    return found


def _rows_with_keys(cache: Cache, keys: Collection[str]) -> Mapping[ShardId, Collection[int]]:
    wanted = pa.array(sorted(keys), pa.string())
    found: dict[ShardId, Collection[int]] = {}
    seen: set[str] = set()
    for place, table in cache.scan(["key", "row", "status"]):
        here = pc.and_(pc.is_in(table["key"], value_set=wanted), pc.equal(table["status"], "ok"))
        rows = table.filter(here)
        if rows.num_rows:
            found[ShardId(*place)] = set(rows["row"].to_pylist())
            seen.update(rows["key"].to_pylist())
    if missing := sorted(set(keys) - seen):
        raise ConfigError(
            f"--keys: the cache has no ok clip with {len(missing)} of {len(keys)} keys: "
            f"{some_of([*map(repr, missing)])}. Nothing was written. Keys are those of "
            "cache.table(), one a line."
        )
    return found


def _both(
    one: Mapping[ShardId, Collection[int]], other: Mapping[ShardId, Collection[int]]
) -> Mapping[ShardId, Collection[int]]:
    return {
        shard: common
        for shard, rows in one.items()
        if (common := set(rows).intersection(other.get(shard, ())))
    }
