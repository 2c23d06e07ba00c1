"""One cache as a loader reads it: a snapshot, which the next epoch may replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latentcache.errors import CacheError
from latentcache.format.manifest import MAX_SHARDS
from latentcache.reading import shard_set
from latentcache.reading.cache import Cache
from latentcache.reading.loader.clip_weights import ClipWeights
from latentcache.reading.loader.fields import LoaderFields
from latentcache.reading.loader.filters import Where
from latentcache.reading.loader.selection import ShardMap
from latentcache.reading.loader.transform import Transform
from latentcache.reading.views.adapt import AnyView

DIGEST_BYTES = 32
GENERATION_BYTES = 8
_BITS = DIGEST_BYTES + GENERATION_BYTES
#: Snapshots of later generations have more shards, so there is room for those of the largest cache.
SHARED_BYTES = DIGEST_BYTES + GENERATION_BYTES + MAX_SHARDS // 8


class Source:
    """A cache, what is taken from it, and what is done to it.

    Its snapshot is in shared memory, so that a choice of the main process between two epochs reaches
    the workers of a DataLoader, including persistent ones.
    """

    def __init__(
        self,
        cache: Cache,
        transform: Transform,
        where: Where | None,
        columns: Sequence[str] | None,
        fields: LoaderFields | None = None,
        frames: int | None = None,
        view: AnyView | None = None,
        weights: ClipWeights | None = None,
    ) -> None:
        self.transform, self._frames, self._view = transform, frames, view
        self._weights = weights
        self._where, self._columns = where, columns
        self._fields = self._all_fields = fields
        #: Which parts of the fields were chosen last, by any process; and those that are taken here.
        self._parts = torch.ones(fields.num_parts if fields else 0, dtype=torch.bool)
        self._parts.share_memory_()  # type: ignore[no-untyped-call]
        self._taken = self._parts.numpy().copy()
        self._open(cache)
        self._shared = torch.zeros(SHARED_BYTES, dtype=torch.uint8)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._share(cache)

    def _open(self, cache: Cache) -> None:
        of_fields = self._fields.at(cache) if self._fields else None
        self._map = ShardMap(
            cache,
            self._where,
            self._columns,
            of_fields,
            self._frames,
            self._view,
            self._weights,
        )
        self._identity = {**_identity_of(cache, of_fields), "where": self._map.digest}

    @property
    def map(self) -> ShardMap:
        """The samples of the snapshot that was chosen last, by any process."""
        shared, cache = self._shared.numpy(), self._map.cache
        digest = shared[:DIGEST_BYTES].tobytes().hex()
        if digest != cache.snapshot:
            generation = int(shared[DIGEST_BYTES:_BITS].view("<i8")[0])
            cache = cache.at(generation, shared[_BITS:], digest)
        if self._take_parts() or cache is not self._map.cache:
            self._open(cache)
        return self._map

    def _take_parts(self) -> bool:
        """Take the parts of fields that were chosen last; returns whether they are others than before."""
        chosen = self._parts.numpy()
        if self._all_fields is None or np.array_equal(chosen, self._taken):
            return False
        self._taken = chosen.copy()
        self._fields = self._all_fields.only(self._taken)
        return True

    def choose(self, snapshot: Mapping[str, Any]) -> None:
        """Take a snapshot, as `newest` or `identity` describes it, from the next epoch on.

        Raises CacheError if it is of another cache, if its shards have changed, or if it has shards of
        fields that are not here.
        """
        cache = self.map.cache
        if snapshot.get("fingerprint") != cache.manifest.fingerprint:
            raise CacheError(
                f"fingerprint: {snapshot.get('fingerprint', 'absent')} was expected, but "
                f"{cache!r} has {cache.manifest.fingerprint}"
            )
        chosen = self._cache_of(snapshot)
        fields = snapshot.get("fields")
        if self._all_fields and isinstance(fields, Mapping):
            kept = self._all_fields.kept(fields, sorted(chosen.committed))
            self._parts[:] = torch.from_numpy(kept)
        if self._take_parts() or chosen is not cache:
            self._open(chosen)
            self._share(chosen)

    def _cache_of(self, snapshot: Mapping[str, Any]) -> Cache:
        cache = self._map.cache
        if snapshot.get("snapshot") == cache.snapshot:
            return cache
        generation, bits = (
            snapshot.get("generation"),
            shard_set.from_text(str(snapshot.get("shards"))),
        )
        if type(generation) is not int:
            raise CacheError(
                f"generation: {generation!r} is no number. Load what state_dict returned."
            )
        return cache.at(generation, bits, str(snapshot.get("snapshot")))

    def _share(self, cache: Cache) -> None:
        """Show the other processes which snapshot was chosen; its digest comes last."""
        shared, bits = self._shared.numpy(), cache.shard_bits
        shared[DIGEST_BYTES:_BITS].view("<i8")[0] = len(cache.manifest.generations)
        shared[_BITS:] = 0
        shared[_BITS : _BITS + len(bits)] = bits
        shared[:DIGEST_BYTES] = _digest_of(cache)

    def identity(self) -> dict[str, Any]:
        """Return what determines the order of samples, as JSON values."""
        return self._identity if self.map else {}

    def newest(self) -> dict[str, Any]:
        """Return what determines batches of the snapshot that is published now, as JSON values.

        That is the snapshot, and all shards of fields that were there when this was made.
        """
        return _identity_of(self.map.cache.newest(), self._all_fields)


def _identity_of(cache: Cache, fields: LoaderFields | None) -> dict[str, Any]:
    """Return a snapshot, and what is there of fields beside it, as JSON values.

    Any further shard in a cache makes it another one.
    """
    of_fields = {"fields": fields.identity(sorted(cache.committed))} if fields else {}
    return {
        "fingerprint": cache.manifest.fingerprint,
        "snapshot": cache.snapshot,
        "generation": len(cache.manifest.generations),
        "shards": shard_set.to_text(cache.shard_bits),
        **of_fields,
    }


def _digest_of(cache: Cache) -> shard_set.Bits:
    return np.frombuffer(bytes.fromhex(cache.snapshot), np.uint8).copy()
