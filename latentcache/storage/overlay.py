"""A folder with objects that are not written to it: what it would be with them, to be looked at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentcache.storage.folder import Storage
from latentcache.storage.spill import Data


class Overlay(Storage):
    """A folder to read, in which some objects lie over those that are stored. Listings lack them."""

    def __init__(self, below: Storage, objects: Mapping[str, Data]) -> None:
        super().__init__(below.url, below._options)
        self._objects = objects

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read (offset, length) ranges of one object, as `Storage.read_ranges` does."""
        if path not in self._objects:
            return super().read_ranges(path, ranges)
        data = self._objects[path]
        return [bytes(data[start : start + length]) for start, length in ranges]
