"""What a loader does about damaged clips: raise, or leave them out, count them and say so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch

from latentcache.core.arguments import one_of
from latentcache.errors import CorruptionError
from latentcache.reading.cache import Cache
from latentcache.reading.picks import Picks

OnDamaged = Literal["raise", "skip"]
log = logging.getLogger(__name__)


class Damage:
    """Reads clips of a shard. on_damaged: what becomes of damaged ones. Thread-safe."""

    def __init__(self, on_damaged: OnDamaged) -> None:
        one_of("on_damaged", on_damaged, get_args(OnDamaged))
        self.skips = on_damaged == "skip"

    def read(
        self,
        cache: Cache,
        bucket: str,
        shard: int,
        rows: Sequence[int],
        out: Sequence[torch.Tensor],
        *,
        check: bool,
        picks: Picks | None = None,
    ) -> list[int]:
        """Read ok rows of a shard, as `Cache.read` does; return which of them could be read, by place.

        Raises CorruptionError for a damaged one, unless they are skipped.
        """
        picks = picks or [None] * len(rows)
        try:
            cache.read(bucket, shard, rows, out, check=check, picks=picks)
        except CorruptionError:
            if not self.skips:
                raise
            return [
                n
                for n in range(len(rows))
                if _is_sound(cache, bucket, shard, rows[n], out[n], picks[n])
            ]
        return list(range(len(rows)))

    def tables(self, cache: Cache, bucket: str, shards: Iterable[int]) -> bool:
        """Tell whether the sample tables of shards can be read.

        Raises CorruptionError for a damaged one, unless its clips are skipped.
        """
        try:
            for shard in shards:
                cache.rows(bucket, shard)
        except CorruptionError as error:
            if not self.skips:
                raise
            log.warning("skipped the clips of a damaged table: %s", error)
            return False
        return True


def _is_sound(
    cache: Cache,
    bucket: str,
    shard: int,
    row: int,
    out: torch.Tensor,
    pick: Sequence[int] | None,
) -> bool:
    try:
        cache.read(bucket, shard, [row], [out], picks=[pick])
    except CorruptionError as error:
        log.warning("skipped a damaged clip: %s", error)
        return False
    return True
