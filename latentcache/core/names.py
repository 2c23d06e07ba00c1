"""Names in Arrow's columns, looked up by hashes: Arrow's own tables of them take ten times the memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken

Rows = npt.NDArray[np.int32]
#: Names that are Python's objects at a time.
CHUNK_ROWS = 1 << 16


class NameIndex:
    """The rows of names in a column, in 12 bytes a name however long it is. Of equal names the first."""

    def __init__(self, names: pa.ChunkedArray) -> None:
        self._names = names
        hashes = hashes_of(names)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], order.astype(np.int32)

    def find(self, names: pa.ChunkedArray) -> Rows:
        """Return the rows of some names, -1 for one that is not there."""
        found = np.full(len(names), -1, np.int32)
        if len(self._rows):
            for start in range(0, len(names), CHUNK_ROWS):
                piece = names.slice(start, CHUNK_ROWS)
                found[start : start + CHUNK_ROWS] = self._find(piece)
        return found

    def _find(self, names: pa.ChunkedArray) -> Rows:
        found = np.full(len(names), -1, np.int32)
        hashes = hashes_of(names)
        places = np.searchsorted(self._hashes, hashes)
        left = np.arange(len(names))
        while len(left):  # once more where names differ and their hashes do not
            left = left[places[left] < len(self._rows)]
            left = left[self._hashes[places[left]] == hashes[left]]
            rows = self._rows[places[left]]
            equal = pc.equal(names.take(pa.array(left)), taken(self._names, rows))
            is_it = np.asarray(equal.to_numpy(), bool)
            found[left[is_it]] = rows[is_it]
            left = left[~is_it]
            places[left] += 1
        return found


def hashes_of(names: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return a hash of each name, which is the same in this process only."""
    hashes = np.empty(len(names), np.int64)
    for start in range(0, len(names), CHUNK_ROWS):
        some = names.slice(start, CHUNK_ROWS).to_pylist()
        hashes[start : start + len(some)] = np.fromiter(map(hash, some), np.int64, len(some))
    return hashes


def may_repeat(names: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return where names are that are there twice: those, and few others."""
    hashes = hashes_of(names)
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.isin(hashes, twice) if len(twice) else np.zeros(len(names), bool)
