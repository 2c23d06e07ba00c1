"""Files of other programs that cannot be taken in: damaged ones are refused, unreadable ones say why.

The only place that tells the two apart. A file is damaged if its bytes are not what they should be. An
operating system that does not hand them out says nothing about them: it may lack a permission, open files
or memory, or its disk may be sick. Nobody is told to remove a file for that.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from latentcache.errors import CorpusError, LatentCacheError
from latentcache.redaction import printable
from latentcache.storage.filesystems import translated
from latentcache.storage.folder import Storage, join, redact

#: What an import says of every file that it refuses.
NOTHING = "Nothing was imported. Remove the file, or have the trainer write it again."
#: What torch raises as RuntimeError where the system does not let it map a file, with the system's number.
_NOT_MAPPED = re.compile(r"unable to (?:open|stat|mmap) .*\((\d+)\)", re.DOTALL)


def refuse(storage: Storage, path: str, why: str) -> CorpusError:
    """Return the error of a file that cannot be imported, in one sentence."""
    return CorpusError(printable(f"{redact(join(storage.url, path))} {why}. {NOTHING}"))


@contextlib.contextmanager
def read_whole(
    storage: Storage,
    path: str,
    kinds: tuple[type[Exception], ...],
    why: Callable[[Exception], str],
) -> Iterator[None]:
    """Refuse a file whose bytes a reader finds to be damaged; raises CorpusError.

    kinds: what the reader raises of damage, beside OSError without a number, which several libraries raise
    of it. why: says it. What says nothing about the bytes is raised as StorageError.
    """
    damage: tuple[type[Exception], ...] = (*kinds, OSError)
    try:
        yield
    except LatentCacheError:
        raise
    except FileNotFoundError:
        raise _gone(storage, path) from None
    except damage as error:
        if (number := _number_of(error)) is None:
            raise refuse(storage, path, why(error)) from None
        with translated("read", join(storage.url, path), {}):
            raise OSError(number, os.strerror(number)) from error


def _gone(storage: Storage, path: str) -> CorpusError:
    return CorpusError(
        printable(
            f"{redact(join(storage.url, path))} is not there any more. Nothing was imported. Put it back; "
            "of a link that leads nowhere, put back what it leads to, or remove the link."
        )
    )


def _number_of(error: Exception) -> int | None:
    """Return the operating system's number of why a file could not be read; None if it could."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, RuntimeError) and (match := _NOT_MAPPED.match(str(error))):
        return int(match[1])
    return None
