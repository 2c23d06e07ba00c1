"""What a cache that is copied from others knows of sources; growing it opens no whole one again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.copying.owners import Owners, is_owner
from latentcache.copying.selection import Selection
from latentcache.planning.known import KnownCache, as_sources
from latentcache.planning.step import Step


class NewSources:
    """The sources of a new cache, each as one of the caches knows it that are right about it.

    Without a selection these are all, else those that gave a clip. `precompute` plans all clips of a
    source that is said to be partial, and one of which nothing is said is new to it.

    given: sources that gave a clip; lacking: those with clips that are still to be encoded. partial: other
    sources that no cache has in whole, as they were copied before from caches that were not finished.
    """

    def __init__(
        self,
        caches: Sequence[KnownCache],
        owners: Owners,
        selection: Selection,
        given: Collection[str],
        lacking: Collection[str],
    ) -> None:
        self._caches, self._given, self._lacking = caches, given, lacking
        self._cache_of: dict[str, int] = {}
        partial: set[str] = set()
        for number, cache in enumerate(caches):
            for name, source in cache.sources.items():
                if not is_owner(owners, name, number) or not (selection.is_all or name in given):
                    continue
                if name not in self._cache_of or (name in partial and not source.is_partial):
                    self._cache_of[name] = number
                    if source.is_partial:
                        partial.add(name)
                    else:
                        partial.discard(name)
        # Of each key that was asked for there is a clip.
        self.partial = partial.difference(lacking) if selection.keys is None else frozenset[str]()

    def add_to(self, step: Step) -> list[pa.Table]:
        """Say what is known of the sources; returns the rejected ones, as rows of the caches' tables."""
        rejected = []
        for number, cache in enumerate(self._caches):
            said: dict[str, list[str]] = {"partial": [], "planned": [], "rejected": []}
            for name, of in self._cache_of.items():
                if of == number and (what := self._what(cache, name)):
                    said[what].append(name)
            for what, names in said.items():
                step.add_sources(as_sources(cache, pa.chunked_array([names], pa.string())), what)
            if said["rejected"]:
                rows, names = cache.rejected_rows(), sorted(said["rejected"])
                wanted = pc.is_in(rows["source"], value_set=pa.array(names, pa.string()))
                rejected.append(rows.filter(wanted))
        return rejected

    def _what(self, cache: KnownCache, name: str) -> str:
        """Return what is said of a source, nothing of one that only has clips to come."""
        if name in self._lacking:
            return "partial" if name in self._given else ""
        if name in self.partial:
            return "partial"
        return "rejected" if cache.sources[name].is_rejected else "planned"
