"""What identifies a source's content: cheap enough for millions of files, and remote ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from latentcache.errors import ClipError, StorageError, UnreachableError
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.source_files import kind_of_file, open_source
from latentcache.storage.urls import redact_url

#: Three blocks of this size, with the file's size, identify its content: a container's index (every
#: frame's size) is at one end of the file, so that no other encoding of the video has the same digest.
BLOCK_BYTES = 1 << 16


def identify(file: IO[bytes]) -> str:
    """Return the identity of an open file: its size and the digest of its head, middle and tail."""
    size = file.seek(0, 2)
    digest = hashlib.blake2b(digest_size=16)
    for offset in (0, max(0, size // 2), max(0, size - BLOCK_BYTES)):
        file.seek(offset)
        digest.update(file.read(BLOCK_BYTES))
    return f"{size}-{digest.hexdigest()}"


def local_path(url: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Return the path of a source on this machine, None of a remote one.

    Raises ClipError where it is no regular file: to open a pipe or a device can take for ever.
    """
    fs, path = open_filesystem(url, options)
    if "file" not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        return None
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        link = " (a link to what is not there)" if Path(path).is_symlink() else ""
        raise ClipError("missing", f"no such file: {redact_url(url)}{link}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ClipError("unreadable", f"cannot be opened: {why}: {redact_url(url)}") from error
    if what := kind_of_file(mode):
        raise ClipError("unreadable", f"not a regular file but a {what}: {redact_url(url)}")
    return str(path)


def identify_url(url: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the identity of the file at a URL.

    Raises ClipError("missing" or "unreadable"), and UnreachableError, which says nothing of the file.
    """
    local_path(url, options)
    try:
        with open_source(url, options) as file:
            return identify(file)
    except FileNotFoundError:
        raise ClipError("missing", f"no such file: {redact_url(url)}") from None
    except UnreachableError:
        raise
    except StorageError as error:
        raise ClipError("unreadable", str(error)) from error
