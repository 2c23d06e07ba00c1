"""How many bytes the files in a folder may take, which any number of processes share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

#: The fraction of the bound that eviction leaves, so that not every new file lists all others.
KEPT_FRACTION = 0.9
#: What a file takes of a disk at least, and at its end.
DISK_BLOCK_BYTES = 4096
#: The unit of st_blocks, on every system.
STAT_BLOCK_BYTES = 512


class Room:
    """Counts the bytes of the files that match `pattern` in a folder, and removes those used longest ago.

    remove: takes a file away and tells whether it could; by default it always can.
    """

    def __init__(
        self, folder: Path, pattern: str, remove: Callable[[Path], bool] | None = None
    ) -> None:
        self._folder, self._pattern = folder, pattern
        self._remove = remove or _unlink

    def take(self, num_bytes: int, max_bytes: int) -> bool:
        """Count bytes that will be written; tell whether there is room for them, or could be made."""
        with self.used() as used:
            if used.add(num_bytes) <= max_bytes:
                return True
            left = self._evict(int(max_bytes * KEPT_FRACTION) - num_bytes)
            fits = left + num_bytes <= max_bytes
            used.set(left + (num_bytes if fits else 0))
            return fits

    @contextlib.contextmanager
    def used(self) -> Iterator[Used]:
        """Lock the count, which is of all files there are where nobody has counted before."""
        fd = os.open(self._folder / "used", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield Used(fd, lambda: self._evict(sys.maxsize))
        finally:
            # closing does not unlock if this process has forked since
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _evict(self, max_bytes: int) -> int:
        """Remove the files used longest ago until the rest takes at most `max_bytes`; returns the rest."""
        files = []
        for file in self._folder.glob(self._pattern):
            with contextlib.suppress(FileNotFoundError):
                stat = file.stat()
                files.append((stat.st_mtime_ns, stat.st_blocks * STAT_BLOCK_BYTES, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= max_bytes:
                break
            if self._remove(file):
                total -= size
        return total


class Used:
    """The bytes that all processes have taken, in a locked file; never less than the true number."""

    def __init__(self, fd: int, count: Callable[[], int]) -> None:
        self._fd, self._count = fd, count

    def add(self, num_bytes: int) -> int:
        """Add bytes; returns the sum."""
        text = os.pread(self._fd, 32, 0).strip()
        before = int(text) if text.isdigit() else self._count()
        self.set(before + num_bytes)
        return before + num_bytes

    def set(self, num_bytes: int) -> None:
        """Set the sum."""
        os.pwrite(self._fd, b"%-31d\n" % num_bytes, 0)

    def forget(self) -> None:
        """Let the files be counted again."""
        os.ftruncate(self._fd, 0)


def _unlink(file: Path) -> bool:
    file.unlink(missing_ok=True)
    return True
