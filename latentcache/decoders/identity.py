"""What identifies a source's content: cheap enough for millions of files, and remote ones."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from latentcache.core.regular_files import kind_of_file
from latentcache.errors import ClipError, SourceError, StorageError
from latentcache.redaction import printable
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.part_files import open_whole_or_part
from latentcache.storage.parts import file_of
from latentcache.storage.source_files import is_absent
from latentcache.storage.urls import public_name, redact_url

#: Three blocks of this size, with the file's size, identify its content: a container's index (every
#: frame's size) is at one end of the file, so that no other encoding of the video has the same digest.
BLOCK_BYTES = 1 << 16


def identify(file: IO[bytes] | io.RawIOBase) -> str:
    """Return the identity of an open file: its size and the digest of its head, middle and tail."""
    size = file.seek(0, 2)
    digest = hashlib.blake2b(digest_size=16)
    for offset in (0, max(0, size // 2), max(0, size - BLOCK_BYTES)):
        file.seek(offset)
        digest.update(file.read(BLOCK_BYTES) or b"")
    return f"{size}-{digest.hexdigest()}"


def local_path(url: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Return the path of a source on this machine, None of a remote one, and of a part of a file.

    Raises ClipError where it is no regular file: to open a pipe or a device can take for ever.
    SourceError where the system does not say what it is.
    """
    file = file_of(url)
    fs, path = open_filesystem(file, options)
    if "file" not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        return None
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        link = " (a link to what is not there)" if Path(path).is_symlink() else ""
        raise ClipError("missing", f"no such file: {redact_url(url)}{link}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_NAMES:
            raise _unreadable(url, error) from error
        why = getattr(error, "strerror", None) or error
        raise ClipError("unreadable", f"cannot be opened: {why}: {redact_url(url)}") from error
    if what := kind_of_file(mode):
        raise ClipError("unreadable", f"not a regular file but a {what}: {redact_url(url)}")
    return str(path) if file == url else None


#: Errors that the name of a file explains, or a link.
_OF_NAMES = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR})


def identify_url(url: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the identity of the file at a URL.

    Raises ClipError: "missing", of which `absence` tells whether it counts, or "unreadable" where it is
    no regular file. Raises StorageError of all else, which says nothing of the file.
    """
    local_path(url, options)
    try:
        with open_whole_or_part(url, options, for_parts=True) as file:
            return identify(file)
    except FileNotFoundError:
        raise ClipError("missing", f"no such file: {redact_url(url)}") from None
    except StorageError:
        raise
    except OSError as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: OSError) -> SourceError:
    return SourceError(f"cannot read {printable(public_name(url))}: {error.strerror or error}")


def absence(
    error: ClipError, url: str, options: Mapping[str, Any] | None, neighbours: Sequence[str] = ()
) -> ClipError | SourceError:
    """Return what a source that was not found is: missing, if its neighbours are there.

    Of a mount that is gone nothing is there, and no source of it is missing. neighbours: other sources,
    for http. Raises StorageError.
    """
    if is_absent(file_of(url), options, neighbours):
        return error
    where = printable(public_name(url))
    return SourceError(
        f"no such file: {where}, and nothing else is there: its folder is empty or not there, or its "
        "server has none of its other sources. A disk or server may be away. If the corpus has moved, run "
        "precompute with the new corpus.source. If all of it was removed, take it out of the corpus: "
        "precompute --prune retires its clips"
    )
