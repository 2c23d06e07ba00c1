"""The clips that a new cache takes: of sources that several caches have, each once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentcache.copying.owners import Owners
from latentcache.core.columns import python_values
from latentcache.core.names import NameIndex
from latentcache.format.columns import CAPTION
from latentcache.planning.masks import Mask
from latentcache.planning.plan import kept_names


class Taken:
    """The clips that are taken already. Of no other sources than shared ones anything is noted by clip.

    given: by number, the sources that gave a clip, where that is asked for: of a selection, or where clips
    wait. num_twice: clips that were not taken, for another cache's is; num_other: those that were not, for
    their sources are of other content there. waiting: source and key of clips that nobody has, as far as
    they are not taken.
    """

    def __init__(
        self, owners: Owners, waiting: Iterable[tuple[str, str]] = (), *, is_all: bool
    ) -> None:
        self._owners, self._waiting = owners, set(waiting)
        self._is_noted = not is_all or bool(self._waiting)
        size = owners.union.size
        self.given, self._others = np.zeros(size, bool), np.zeros(size, bool)
        self._keys: list[pa.Array] = []
        self._labels: list[npt.NDArray[np.int64]] = []
        self._relabelled = np.zeros(0, bool)
        self.num_twice = self.num_other = 0
        self.begin()

    def begin(self) -> None:
        """Begin with the rows of another cache: no two rows of one cache are the same clip."""
        self._index = NameIndex(pa.chunked_array(self._keys, pa.string()))
        self._known = np.concatenate([np.zeros(0, np.int64), *self._labels])
        new = len(self._known) - len(self._relabelled)
        self._relabelled = np.concatenate([self._relabelled, np.zeros(new, bool)])

    def new_ones(self, number: int, rows: pa.Table) -> pa.Table:
        """Return the rows of a cache that are to be taken."""
        is_shared = self._owners.shared(rows["source"])
        if is_shared.any():
            rows = rows.filter(pa.array(self._are_new(number, rows, is_shared)))
        if self._is_noted:
            at = self._owners.union.find(rows["source"])
            self.given[at[at >= 0]] = True
        if self._waiting:
            self._waiting.difference_update(
                zip(rows["source"].to_pylist(), rows["key"].to_pylist(), strict=True)
            )
        return rows

    @property
    def num_relabelled(self) -> int:
        """Number of clips that are taken once, and have other captions or kept columns elsewhere."""
        return int(self._relabelled.sum())

    @property
    def num_other_sources(self) -> int:
        """Number of sources of which clips were not taken, for they are of other content."""
        return int(self._others.sum())

    @property
    def num_waiting(self) -> int:
        """Number of clips that wait."""
        return len(self._waiting)

    @property
    def lacking(self) -> set[str]:
        """Sources some of whose clips are not there."""
        return {source for source, _ in self._waiting}

    def _are_new(self, number: int, rows: pa.Table, is_shared: Mask) -> Mask:
        is_right = self._owners.is_right(number, rows["source"])
        other, wanted = is_shared & ~is_right, np.flatnonzero(is_shared & is_right)
        self.num_other += int(other.sum())
        numbers = self._owners.union.find(rows["source"].filter(pa.array(other)))
        self._others[numbers] = True
        mine = rows.take(pa.array(wanted))
        labels, at = _labels_of(mine), self._index.find(mine["key"])
        is_twice = at >= 0
        self.num_twice += int(is_twice.sum())
        twice = at[is_twice]
        self._relabelled[twice[self._known[twice] != labels[is_twice]]] = True
        self._keys += mine["key"].filter(pa.array(~is_twice)).chunks
        self._labels.append(labels[~is_twice])
        are_new = ~is_shared
        are_new[wanted[~is_twice]] = True
        return are_new


def _labels_of(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return a hash of the captions and kept columns of each row; a whole number is one of any type."""
    names = sorted([CAPTION, *kept_names(rows)])
    values = zip(*(python_values(rows[name]) for name in names), strict=True)
    hashes = (hash(repr(_given(zip(names, row, strict=True)))) for row in values)
    return np.fromiter(hashes, np.int64, rows.num_rows)


def _given(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return values by name without nulls, as a cache may lack the column; 1.0 as 1."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in values
        if value is not None
    }
