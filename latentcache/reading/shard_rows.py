"""The ok rows of one sample table: where each clip's bytes are, and its columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import python_values
from latentcache.core.records import ChunkRef
from latentcache.format.per_frame import PER_FRAME, names_in
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.reading.per_frame import per_frame_tensor
from latentcache.reading.time_ids import TIME_IDS, time_ids


class ShardRows:
    """The ok rows of one sample table, numbered from 0 in row order."""

    def __init__(self, bucket: str, shard: int, table: pa.Table) -> None:
        self.bucket, self.shard = bucket, shard
        table = table.filter(pc.equal(table["status"], "ok"))
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        #: Names of the columns with a value per frame.
        self.per_frame = names_in(table.schema)
        if self.per_frame:
            values = self._columns.pop(PER_FRAME)
            self._columns.update({n: pc.struct_field(values, n) for n in self.per_frame})
        places = [self._columns[name].to_pylist() for name in ("row", "offset", "length", "crc32c")]
        self.chunks = [
            ChunkRef(row=row, offset=offset, length=length, crc32c=crc)
            for row, offset, length, crc in zip(*places, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def kept(self) -> list[str]:
        """Names of the columns that were carried over from the corpus."""
        return [name for name in self._columns if name not in SAMPLE_SCHEMA.names]

    def position(self, row: int) -> int:
        """Return a row's number among the ok rows. Raises ValueError if it is none of them."""
        return [chunk.row for chunk in self.chunks].index(row)

    def column(self, name: str, positions: Sequence[int]) -> list[Any]:
        """Return a column's values at ok rows; None if only other shards have kept it from the corpus.

        Values per frame are tensors, [T] or [T, n]; so are `time_ids`, [6].
        """
        column = self._columns.get(name)
        if column is None and name == TIME_IDS:
            return [time_ids(self._columns, position) for position in positions]
        if column is None:
            return [None] * len(positions)
        if name in self.per_frame:
            return [per_frame_tensor(column[position]) for position in positions]
        return python_values(column.take(pa.array(positions, pa.int64())))
