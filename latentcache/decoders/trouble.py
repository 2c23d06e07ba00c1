"""The decoding process's own trouble: out of memory, threads or files. No clip has failed for it yet."""

from __future__ import annotations

import errno
from typing import Literal

#: Limits of the machine, or of what the process may take of it. They say nothing about a file.
_MACHINE = frozenset(
    {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
)


class ProcessTroubleError(Exception):
    """The process lacks something, and a fresh one may not.

    lacks: `memory`, of which a clip can need too much, or `machine`, for all else.
    """

    def __init__(self, lacks: Literal["memory", "machine"], message: str) -> None:
        super().__init__(message)
        self.lacks = lacks


def trouble_of(error: BaseException | None) -> ProcessTroubleError | None:
    """Return what an error, or one that it was raised from, says of the process; None for nothing."""
    while error is not None:
        if isinstance(error, ProcessTroubleError):
            return error
        number = getattr(error, "errno", None)
        if isinstance(error, MemoryError) or number == errno.ENOMEM:
            return ProcessTroubleError(
                "memory", "decoding needs more memory than run.decode_memory_bytes allows"
            )
        if number in _MACHINE:
            why = getattr(error, "strerror", None) or error
            return ProcessTroubleError(
                "machine",
                f"a decoding process gets no more threads, files or disk space: {why}. Give the "
                "machine more of it, or use fewer of them: run.decode_processes",
            )
        error = error.__cause__
    return None
