"""Copies of sources below TMPDIR, for one process each: gone when it closes them, and when it is killed.

A copy has the process's number in its name and is locked while the process lives, so that whoever finds one
without a lock may remove it. The process's own end is the rare case: decoding processes are killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

_PREFIX = "latentcache-copy-"
#: Between its making and its lock a copy looks as if nobody had it.
_YOUNG_S = 60.0


def new_copy(suffix: str) -> IO[bytes]:
    """Make an empty file with a name, unbuffered, that is removed when it is closed. Raises OSError."""
    file = tempfile.NamedTemporaryFile(  # noqa: SIM115 closed by the caller
        prefix=f"{_PREFIX}{os.getpid()}-",
        suffix=suffix,
        buffering=0,  # what is in a buffer would fail again when the file is closed
    )
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def remove_copies_of(process: int) -> None:
    """Remove the copies of a process that has ended."""
    _remove(f"{_PREFIX}{process}-*", age_s=0.0)


def remove_orphans() -> None:
    """Remove the copies of all processes of this user that were killed with whoever started them."""
    _remove(f"{_PREFIX}*", _YOUNG_S)


def _remove(pattern: str, age_s: float) -> None:
    for path in Path(tempfile.gettempdir()).glob(pattern):
        with (
            contextlib.suppress(OSError),
            path.open("rb") as file,
        ):  # others' files, and others' work
            if time.time() - os.fstat(file.fileno()).st_mtime >= age_s:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
