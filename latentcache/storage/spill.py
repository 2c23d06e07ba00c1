"""Tables and objects that are larger than memory should hold: in a temporary file that is mapped.

Mapped pages are the system's to drop, since the file has them. The file has no name: nothing is left of it,
however the process ends.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
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

#: The bytes of an object: a large one's are mapped.
Data = bytes | mmap.mmap


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

    def joined(self, parts: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
        """Return parts of a column as one, of which no more than one was in memory."""
        kept = [chunk for part in parts for chunk in self.column(part).chunks]
        return pa.chunked_array(kept, kind)

    def _put(self, table: pa.Table) -> pa.Table:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stream = sink.getvalue()
        start = self._room(stream.size)
        with _refused():
            self._write(stream, self._segment_start + start)
        return pa.ipc.open_stream(self._segment.slice(start, stream.size)).read_all()

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
        with _refused():
            if self._file is None:
                self._file = _nameless()
                weakref.finalize(self, self._file.close)  # what is mapped stays
            begin = self._segment_start + self._segment.size
            self._file.truncate(begin + num_bytes)
            mapped = mmap.mmap(
                self._file.fileno(), num_bytes, access=mmap.ACCESS_READ, offset=begin
            )
        self._segment, self._segment_start = pa.py_buffer(mapped), begin

    def _write(self, data: pa.Buffer, start: int) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file.fileno(), view, start)
            view, start = view[done:], start + done


def written(write: Callable[[IO[bytes]], object]) -> mmap.mmap:
    """Return what is written to a temporary file, which is not nothing. Raises MachineError."""
    with _refused(), _nameless() as file:
        write(file)
        return _mapped(file)


def gathered(pieces: Iterator[bytes]) -> Data:
    """Return pieces as one; several are mapped. Raises MachineError, and what the pieces raise."""
    first, second = next(pieces, b""), next(pieces, b"")
    if not second:
        return first
    with _refused():
        file = _nameless()
    with file:
        for piece in itertools.chain([first, second], pieces):
            with _refused():
                file.write(piece)
        with _refused():
            return _mapped(file)


def _mapped(file: IO[bytes]) -> mmap.mmap:
    """Map a file, which may be closed then."""
    file.flush()
    return mmap.mmap(file.fileno(), 0)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _no_room(error) from error


def _nameless() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="latentcache-")


def _no_room(error: OSError) -> MachineError:
    folder = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - only said
    return MachineError(
        f"the temporary folder {folder} cannot hold the tables of so many clips ({error}). "
        "Nothing was changed. Free space there (a million clips take about 0.5 GB), or set TMPDIR to a "
        "folder on a larger disk, and run the same command again"
    )
