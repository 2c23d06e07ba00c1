"""A cache on a local disk for bytes read from remote shards, shared by all processes of a machine.

One file per shard object, with holes for what has not been read. A chunk that is read from it must match
its CRC32C. So a chunk that is absent, torn by a crash, or from before its shard was encoded again counts
as not there.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import google_crc32c
import numpy as np

from latentcache.core.records import ChunkRef
from latentcache.errors import ConfigError
from latentcache.storage.room import DISK_BLOCK_BYTES, KEPT_FRACTION, Room

FOLDER = "latentcache-v1"
SUFFIX = ".chunks"


class Buffers(Protocol):
    """A buffer for each chunk, as long as the chunk."""

    def __getitem__(self, n: int, /) -> memoryview: ...


class DiskCache:
    """Chunks of one cache, in a folder that any number of caches and processes share.

    max_bytes bounds the disk blocks of all files in the folder, except those that other processes are
    writing at that moment. The least recently used files are removed first, and never a file of anyone
    else. Safe to use from several threads, after a fork and when pickled: it holds nothing open. Raises
    ConfigError if the folder cannot be used.
    """

    def __init__(self, folder: str | Path, max_bytes: int, cache_fingerprint: str) -> None:
        if max_bytes < 1:
            raise ConfigError(f"disk_cache_bytes is {max_bytes}; it must be at least 1")
        self.folder, self.max_bytes = Path(folder).expanduser().absolute() / FOLDER, max_bytes
        self.fingerprint = cache_fingerprint
        self._room = Room(self.folder, f"*/*{SUFFIX}")
        try:
            (self.folder / cache_fingerprint).mkdir(parents=True, exist_ok=True)
            with self._room.used() as used:
                used.add(0)
        except OSError as error:
            raise ConfigError(
                f"disk_cache {folder}: {error.strerror}. Give a folder on a local disk that you may "
                "write to, or leave disk_cache out."
            ) from error

    def read(
        self, path: str, chunks: Sequence[ChunkRef], buffers: Buffers
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield (position in `chunks`, bytes) of the chunks that are there, once in their buffer."""
        try:
            fd = os.open(self._file(path), os.O_RDONLY)
        except OSError:
            return
        try:
            with contextlib.suppress(OSError):
                os.utime(fd)  # eviction goes by the time of last use
            for n, chunk in enumerate(chunks):
                buffer = buffers[n]
                if _holds(fd, chunk, buffer):
                    yield n, buffer
        finally:
            os.close(fd)

    def write(self, path: str, found: Mapping[ChunkRef, memoryview]) -> None:
        """Keep chunks if they fit. If the disk refuses them, there is a warning and nothing is kept."""
        num_bytes = sum(_blocks(chunk) for chunk in found)
        if not 0 < num_bytes <= self.max_bytes * KEPT_FRACTION:
            return
        try:
            self._room.take(num_bytes, self.max_bytes)
            file = self._file(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for chunk, data in found.items():
                    os.pwrite(
                        fd, data, chunk.offset
                    )  # a chunk that is cut short counts as not there
            finally:
                os.close(fd)
        except OSError as error:
            warnings.warn(
                f"disk_cache {self.folder}: {error.strerror}; chunks are read from the remote cache",
                RuntimeWarning,
                stacklevel=2,
            )

    def _file(self, path: str) -> Path:
        return self.folder / self.fingerprint / (path.replace("/", "+") + SUFFIX)


def _holds(fd: int, chunk: ChunkRef, buffer: memoryview) -> bool:
    try:
        if os.preadv(fd, [buffer], chunk.offset) != chunk.length:
            return False
    except OSError:  # a bad sector
        return False
    return bool(google_crc32c.value(np.frombuffer(buffer, np.uint8)) == chunk.crc32c)


def _blocks(chunk: ChunkRef) -> int:
    """Return the bytes of the disk blocks that a chunk touches."""
    first, last = (
        chunk.offset // DISK_BLOCK_BYTES,
        (chunk.offset + chunk.length - 1) // DISK_BLOCK_BYTES,
    )
    return (last - first + 1) * DISK_BLOCK_BYTES
