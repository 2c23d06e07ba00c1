"""A source of which ranges are read, without a server: some bytes."""

from __future__ import annotations

from typing import cast

from latentcache.decoders.ranged import RangedPath
from latentcache.storage.source_cache import CachedSource


class Bytes:
    """Stands for a CachedSource that has all of a file."""

    path = "bytes"

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def has(self, *_: int) -> bool:
        """Tell whether a range is there."""
        return True

    def ensure(self, *_: int) -> None:
        """Fetch a range."""

    def read(self, start: int, length: int) -> bytes:
        """Read bytes."""
        return self._data[start : start + length]


def ranged(data: bytes) -> RangedPath:
    """Return the path of a file with this content that is read by ranges."""
    return RangedPath(cast("CachedSource", Bytes(data)))
