"""What identifies a source's content: cheap enough for millions of files, and remote ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import IO, Any

from latentcache.errors import ClipError, StorageError
from latentcache.storage import open_source

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


def identify_url(url: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the identity of the file at a URL; raises ClipError("missing" or "unreadable")."""
    try:
        with open_source(url, options) as file:
            return identify(file)
    except FileNotFoundError:
        raise ClipError("missing", f"no such file: {url}") from None
    except StorageError as error:
        raise ClipError("unreadable", str(error)) from error
