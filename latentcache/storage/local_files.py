"""Files on a local disk: written so that they appear whole, read in ranges, listed by name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentcache.core.regular_files import open_regular
from latentcache.errors import StorageError
from latentcache.storage.spill import Data
from latentcache.storage.temporary import temporary_name

#: Errors of file systems that have no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def replace(path: Path, data: Data) -> None:
    """Write a file that appears whole and replaces any before it."""
    with _new_file(path, data) as temporary:
        temporary.replace(path)


def has_links(path: Path) -> bool:
    """Tell whether a local file system has hard links, which are made in one step, or not."""
    with _new_file(path, b"") as temporary:
        try:
            os.link(temporary, path)
        except OSError:
            return False
    path.unlink()
    return True


def create(path: Path, data: Data) -> bool:
    """Write a file that appears whole, unless one is there; returns whether it was written."""
    with _new_file(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StorageError(
                f"{path} cannot be created: {path.parent} is on a file system without hard links, on which "
                "a file is created once. The cache was made on another one. Nothing was changed. Make it "
                "one of this file system with `latentcache copy`"
            ) from error
    return True


@contextlib.contextmanager
def _new_file(path: Path, data: Data) -> Iterator[Path]:
    """Write through a temporary name in the same directory, so that the final rename is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # otherwise a power cut could keep a later rename and lose this one
    finally:
        os.close(folder)


def read(path: Path) -> bytes:
    """Read a file."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def read_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read (offset, length) ranges of a file; fewer bytes of a range past its end."""
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size  # bytes past the end take no memory, however many are requested
        return [os.pread(fd, max(0, min(n, size - start)), start) for start, n in ranges]
    finally:
        os.close(fd)


def read_into(fd: int, offset: int, buffer: memoryview) -> int:
    """Fill a buffer from an offset of an open file, and return how many bytes it got."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def names_in(folder: str) -> list[str]:
    """Return the names of the files in a local folder, whose sizes nobody needs: they cost a look each."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(root: Path, folder: str = "") -> Iterator[tuple[str, os.stat_result, bool]]:
    """Yield path, facts and whether it is a link, of the files in a folder of `root` and below it.

    What is removed or renamed while it is listed is left out. Links are not followed. Raises
    FileNotFoundError where the folder itself is not there.
    """
    with os.scandir(root / folder) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    inside = [*files_below(root, path)]
                else:
                    inside = [(path, entry.stat(follow_symlinks=False), entry.is_symlink())]
            except FileNotFoundError:
                continue
            yield from inside
