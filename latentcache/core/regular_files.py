"""Regular files only: to open a named pipe may take for ever, and to read a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

#: Where a shell puts its pipes: `<(...)` and standard input. They are open already.
_OPEN_ALREADY = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_KINDS: Mapping[int, str] = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def kind_of_file(mode: int) -> str | None:
    """Return what a file of this mode is where it is no regular one."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "special file")


def open_regular(path: str | Path) -> int:
    """Open a file to read it; returns its descriptor. Raises OSError, also where it is no regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    kind = kind_of_file(mode)
    if kind is None:
        return fd
    if stat.S_ISFIFO(mode) and str(path).startswith(_OPEN_ALREADY):
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, f"it is a {kind}, not a regular file", str(path))


def read_regular(path: str | Path, encoding: str = "utf-8") -> str:
    """Return the text of a file. Raises OSError and UnicodeDecodeError."""
    with os.fdopen(open_regular(path), encoding=encoding) as file:
        return file.read()
