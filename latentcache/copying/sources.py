"""What a cache that is copied from others knows of sources; growing it opens no whole one again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.copying.owners import Owners
from latentcache.copying.selection import Selection
from latentcache.planning.known import KnownCache
from latentcache.planning.masks import Mask, chosen, mask_of
from latentcache.planning.step import Step


class NewSources:
    """The sources of a new cache, each as one of the caches knows it that are right about it.

    Without a selection these are all, else those that gave a clip. `precompute` plans all clips of a
    source that is said to be partial, and one of which nothing is said is new to it.

    given, lacking: by number, the sources that gave a clip, and those with clips that are still to be
    encoded. partial: names of other sources that no cache has in whole, as they were copied before from
    caches that were not finished.
    """

    def __init__(
        self,
        caches: Sequence[KnownCache],
        owners: Owners,
        selection: Selection,
        given: Mask,
        lacking: Mask,
    ) -> None:
        self._caches, self._numbers = caches, owners.union.numbers
        self._given, self._lacking = given, lacking
        self._is_partial = [
            mask_of(pc.equal(cache.sources.table["what"], "partial")) for cache in caches
        ]
        teller = np.full(owners.union.size, -1, np.int16)
        for is_partial in (
            True,
            False,
        ):  # the last that tells counts: a whole one, the first of them
            for cache, numbers in reversed([*enumerate(self._numbers)]):
                tells = owners.right[cache][numbers] & (self._is_partial[cache] == is_partial)
                if not selection.is_all:
                    tells &= given[numbers]
                teller[numbers[tells]] = cache
        self._mine = [teller[numbers] == n for n, numbers in enumerate(self._numbers)]
        # Of each key that was asked for there is a clip.
        if selection.keys is not None:
            self._is_partial = [np.zeros_like(mask) for mask in self._is_partial]
        self.partial = frozenset(self._names_of_partial())

    def _names_of_partial(self) -> list[str]:
        names: list[str] = []
        for number, cache in enumerate(self._caches):
            mask = self._mine[number] & self._is_partial[number]
            mask &= ~self._lacking[self._numbers[number]]
            names += chosen(cache.sources.table["source"], mask).to_pylist()
        return names

    def add_to(self, step: Step) -> list[pa.Table]:
        """Say what is known of the sources; returns the rejected ones, as rows of the caches' tables."""
        rejected = []
        for number, cache in enumerate(self._caches):
            table = cache.sources.table
            masks = self._masks(number, mask_of(pc.equal(table["what"], "rejected")))
            for what, mask in masks.items():
                step.add_sources(chosen(table.drop_columns(["what"]), mask), what)
            if masks["rejected"].any():
                names = chosen(table["source"], masks["rejected"]).combine_chunks()
                rows = cache.rejected_rows()
                rejected.append(rows.filter(pc.is_in(rows["source"], value_set=names)))
        return rejected

    def _masks(self, number: int, is_rejected: Mask) -> dict[str, Mask]:
        """Return what is said of each source of a cache, nothing of those that only have clips to come."""
        numbers, mine = self._numbers[number], self._mine[number]
        lacking = self._lacking[numbers]
        partly = np.where(lacking, self._given[numbers], self._is_partial[number])
        whole = mine & ~lacking & ~partly
        return {
            "partial": mine & partly,
            "planned": whole & ~is_rejected,
            "rejected": whole & is_rejected,
        }
