"""The keys of ok clips in the order of their samples, as far as sample tables can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.errors import CorruptionError


@dataclass(frozen=True, kw_only=True)
class Keys:
    """keys: null for the clips of damaged sample tables; unread: what is wrong with the first of these."""

    keys: pa.ChunkedArray
    unread: CorruptionError | None

    def find(self, key: str) -> int:
        """Return a key's number, -1 if no clip has it. Raises CorruptionError if one may have it unseen."""
        number = int(pc.index(self.keys, pa.scalar(key, pa.string())).as_py())
        if number < 0:
            self._check()
        return number

    def to_list(self) -> list[str]:
        """Return all keys. Raises CorruptionError."""
        self._check()
        return self.keys.to_pylist()  # type: ignore[no-any-return]

    def _check(self) -> None:
        if self.unread is not None:
            raise CorruptionError(str(self.unread)) from self.unread


def joined_keys(tables: Iterable[pa.Table | CorruptionError], num_ok: Sequence[int]) -> Keys:
    """Return the keys of tables, each of `key` and `status`, or an error. num_ok: ok clips of each."""
    chunks: list[pa.Array] = []
    unread = None
    for table, num in zip(tables, num_ok, strict=True):
        if isinstance(table, CorruptionError):
            unread = unread or table
            chunks.append(pa.nulls(num, pa.string()))
        else:
            chunks += table.filter(pc.equal(table["status"], "ok"))["key"].chunks
    return Keys(keys=pa.chunked_array(chunks, type=pa.string()), unread=unread)
