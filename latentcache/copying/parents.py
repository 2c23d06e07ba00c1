"""The caches that a merged or copied cache was made from, opened as they were then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from latentcache.copying.stored_rows import OpenCache
from latentcache.errors import CacheError
from latentcache.format.generations import Parent
from latentcache.format.manifest import Manifest, read_manifest
from latentcache.storage.folder import Storage
from latentcache.storage.urls import public_name


def parent_of(cache: OpenCache) -> Parent:
    """Return what a generation says of a cache that it copies from."""
    manifest = cache.manifest
    return Parent(
        url=public_name(cache.storage.absolute_url),
        fingerprint=manifest.fingerprint,
        generation=len(manifest.generations),
        sha256=manifest.generations[-1].sha256,
    )


class Parents:
    """Finds parents: among caches that are open, else at the URLs that they had."""

    def __init__(
        self, storage_options: Mapping[str, Any], opened: Iterable[OpenCache] = ()
    ) -> None:
        self._options = storage_options
        self._opened = tuple(opened)
        self._found: dict[Parent, OpenCache] = {}

    def open(self, parent: Parent) -> OpenCache:
        """Return a parent as it was. Raises CacheError if it is gone or another cache, StorageError."""
        if parent not in self._found:
            self._found[parent] = self._open(parent)
        return self._found[parent]

    def _open(self, parent: Parent) -> OpenCache:
        for cache in self._opened:
            if is_parent(cache.manifest, parent):
                return OpenCache(
                    storage=cache.storage, manifest=cache.manifest.at(parent.generation)
                )
        storage = Storage(parent.url, self._options)
        manifest = read_manifest(storage)
        if not is_parent(manifest, parent):
            raise CacheError(
                f"{parent.url} is not the cache any more that was copied from. Its generation "
                f"{parent.generation} should have the SHA-256 {parent.sha256[:12]}..."
            )
        return OpenCache(storage=storage, manifest=manifest.at(parent.generation))


def is_parent(manifest: Manifest, parent: Parent) -> bool:
    """Tell whether a cache is the one that a generation has copied from, perhaps grown since."""
    generations = manifest.generations
    same = manifest.fingerprint == parent.fingerprint
    there = 0 < parent.generation <= len(generations)
    return same and there and generations[parent.generation - 1].sha256 == parent.sha256
