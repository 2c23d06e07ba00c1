"""Tables that are larger than memory should hold: written to a temporary file, and mapped from there.

Mapped pages are the system's to drop, since the file has them. The file has no name: nothing is left of it,
however the process ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from typing import IO

import pyarrow as pa

from latentcache.errors import MachineError

#: Bytes of tables that stay in memory. Most corpora are smaller, and never touch the disk.
KEPT_BYTES = 1 << 24
#: Rows that are written together.
BATCH_ROWS = 1 << 16
#: Bytes of the file that are mapped together: each mapping takes a descriptor.
MAPPED_BYTES = 1 << 28
#: Arrow's buffers begin at multiples of it.
ALIGNMENT = 64


class Spill:
    """Where tables go that are needed again later. Not for several threads.

    Tables that it has returned stay good without it.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._left_bytes = kept_bytes
        self._file: IO[bytes] | None = None
        self._segment = pa.py_buffer(b"")
        self._segment_start = self._used_bytes = 0

    def put(self, table: pa.Table) -> pa.Table:
        """Return the same rows, in chunks, from the file; as they are if they are few.

        Raises MachineError if the temporary folder has no room.
        """
        if table.nbytes <= self._left_bytes:
            self._left_bytes -= table.nbytes
            return table
        # A slice would keep the memory of what it is a slice of, so all is written from now on.
        self._left_bytes = 0
        batches = table.to_batches(max_chunksize=BATCH_ROWS)
        parts = [self._put(pa.Table.from_batches([batch], table.schema)) for batch in batches]
        return pa.concat_tables(parts) if parts else table

    def column(self, values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
        """Return the same values, as `put` does rows."""
        return self.put(pa.table({"values": values}))["values"]

    def _put(self, table: pa.Table) -> pa.Table:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        written = sink.getvalue()
        start = self._room(written.size)
        try:
            self._write(written, self._segment_start + start)
        except OSError as error:
            raise _no_room(error) from error
        return pa.ipc.open_stream(self._segment.slice(start, written.size)).read_all()

    def _room(self, num_bytes: int) -> int:
        """Return where in the mapped segment so many bytes go; maps the next one if this one is full."""
        start = -(-self._used_bytes // ALIGNMENT) * ALIGNMENT
        if start + num_bytes > self._segment.size:
            start = 0
            self._map(max(MAPPED_BYTES, num_bytes))
        self._used_bytes = start + num_bytes
        return start

    def _map(self, num_bytes: int) -> None:
        num_bytes = -(-num_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="latentcache-")  # noqa: SIM115 - kept
                weakref.finalize(self, self._file.close)  # what is mapped stays
            begin = self._segment_start + self._segment.size
            self._file.truncate(begin + num_bytes)
            mapped = mmap.mmap(
                self._file.fileno(), num_bytes, access=mmap.ACCESS_READ, offset=begin
            )
        except OSError as error:
            raise _no_room(error) from error
        self._segment, self._segment_start = pa.py_buffer(mapped), begin

    def _write(self, data: pa.Buffer, start: int) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file.fileno(), view, start)
            view, start = view[done:], start + done


def _no_room(error: OSError) -> MachineError:
    return MachineError(
        f"the temporary folder {tempfile.gettempdir()} cannot hold the tables of so many clips ({error}). "
        "Nothing was changed. Free space there (a million clips take about 0.5 GB), or set TMPDIR to a "
        "folder on a larger disk, and run the same command again"
    )
