"""What is no evidence about a file: trouble of the decoding process, its machine, or a source's storage.

Only what was read from a file's bytes fails a clip or rejects a source. Everything else is told here: it
is tried again, and then stops the run.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from latentcache.errors import StorageError
from latentcache.storage.source_files import RangesIgnoredError

#: Limits of the machine, or of what the process may take of it. They say nothing about a file.
_MACHINE = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EROFS,
    }
)
#: With these FFmpeg reports a disk that fails, and the first also a file that ends early.
_DISK = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENXIO})
#: Signals that a process brings on itself, by what it decodes. All others come from outside.
CRASHES = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP}
)
_BLOCK_BYTES = 1 << 20

Lacks = Literal["memory", "machine", "source"]


class ProcessTroubleError(Exception):
    """Something that is no file's fault, and may pass.

    lacks: `memory`, of which a clip can need too much; `source`, which its storage does not give; or
    `machine`, for all else.
    """

    def __init__(self, lacks: Lacks, message: str) -> None:
        super().__init__(message)
        self.lacks: Lacks = lacks


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Make trouble of what a read fails with, and so tell it from errors of a library that asked for it."""
    try:
        yield
    except OSError as error:
        trouble = None if isinstance(error, StorageError) else trouble_of(error)
        if trouble is None:
            raise
        raise trouble from error


def trouble_of(
    error: BaseException | None, *, is_parsers: bool = False
) -> ProcessTroubleError | None:
    """Return what an error, or one that it was raised from, says of all but the file; None for nothing.

    is_parsers: it comes from a library that reads by `reading` only. What else the system refuses it, such
    as to seek to where a damaged header says that something is, is the file's fault.
    """
    while error is not None:
        if isinstance(error, ProcessTroubleError):
            return error
        if isinstance(error, StorageError):
            return ProcessTroubleError("source", str(error))
        number = getattr(error, "errno", None)
        lacks_memory = number == errno.ENOMEM and not is_of_the_system(error)
        if isinstance(error, MemoryError) or lacks_memory:
            return lack_of_memory()
        if number in _MACHINE:
            return machine_trouble(error)
        if is_of_the_system(error) and not is_parsers:
            return ProcessTroubleError("source", f"it cannot be read: {_why(error)}")
        error = error.__cause__
    return None


def lack_of_memory() -> ProcessTroubleError:
    """Return the trouble of a process that may take no more memory."""
    return ProcessTroubleError(
        "memory", "decoding needs more memory than run.decode_memory_bytes allows"
    )


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error is that trouble."""
    return isinstance(error, ProcessTroubleError) and error.lacks == "memory"


def has_room(num_bytes: int) -> bool:
    """Tell whether this process may take so much more memory; none is taken.

    Libraries also say that there is none when damage makes them ask for more than any limit, and some say
    that a file is damaged when there is none.
    """
    try:
        mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError):
        return False
    return True


def machine_trouble(error: BaseException) -> ProcessTroubleError:
    """Return the trouble of a machine that gives no more of something."""
    return ProcessTroubleError(
        "machine",
        f"a decoding process gets no more threads, files or disk space: {_why(error)}. Give the "
        "machine more of it (disk space where TMPDIR is), or use fewer of them: run.decode_processes",
    )


def is_of_the_system(error: BaseException) -> bool:
    """Tell whether the system refused to read a file that is there.

    FFmpeg's and Pillow's own errors are of the same classes: the former from their own module, the latter
    without a number.
    """
    return (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, FileNotFoundError)
        and not is_of_ffmpeg(error)
    )


def is_of_ffmpeg(error: BaseException) -> bool:
    """Tell whether PyAV raised an error."""
    return type(error).__module__.partition(".")[0] == "av"


def may_be_the_disks(error: BaseException | None) -> bool:
    """Tell whether FFmpeg's error, or one that an error was raised from, may be one of reading."""
    while error is not None:
        if getattr(error, "errno", None) in _DISK:
            return True
        error = error.__cause__
    return False


def is_of_ranges(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, is of a server that gives no ranges."""
    while error is not None:
        if isinstance(error, RangesIgnoredError):
            return True
        error = error.__cause__
    return False


def read_through(path: str, on_block: Callable[[], object] = lambda: None) -> None:
    """Read a whole file, for decoders do not tell a disk that fails from damage. Raises OSError."""
    with Path(path).open("rb", buffering=0) as file:
        while file.read(_BLOCK_BYTES):
            on_block()


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
