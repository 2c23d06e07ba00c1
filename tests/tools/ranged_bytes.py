"""A source of which ranges are read, without a server: some bytes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from latentcache.decoders.ranged import RangedPath, of_video
from latentcache.storage.source_cache import CachedSource


class Bytes:
    """Stands for a CachedSource that has all of a file."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data, self.size, self.path = data, len(data), path

    def has(self, *_: int) -> bool:
        """Tell whether a range is there."""
        return True

    def ensure(self, *_: int) -> None:
        """Fetch a range."""

    def read(self, start: int, length: int, *, only_present: bool = False) -> bytes:
        """Read bytes."""
        return self._data[start : start + length]


def ranged(data: bytes) -> RangedPath:
    """Return the path of an image, or of Matroska, with this content that is read by ranges."""
    return RangedPath(cast("CachedSource", Bytes(data, "bytes")))


def ranged_video(path: Path) -> RangedPath:
    """Return the path of a video that is here, to be read by ranges."""
    return of_video(cast("CachedSource", Bytes(path.read_bytes(), str(path))))
