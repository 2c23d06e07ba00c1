"""All files of a folder of a remote file system, whichever way it lists them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from latentcache.storage.filesystems import walks_folders


def files_below(fs: Any, path: str, max_depth: int | None = None) -> dict[str, Mapping[str, Any]]:
    """Return what a file system says of each file in a folder and below it, by path.

    Where it lists one folder after the other, fsspec leaves out the folders that cannot be listed. Here
    their errors are raised; only of a folder below that is gone since its parent was listed, there is
    nothing. Raises FileNotFoundError where the folder itself is not there and the file system has folders.
    """
    if not walks_folders(fs):
        return dict(fs.find(path, maxdepth=max_depth, detail=True))
    return {
        str(info["name"]): info for info in _walk(fs, path, max_depth, fs.ls(path, detail=True))
    }


def _walk(
    fs: Any, path: str, max_depth: int | None, listed: Iterable[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    for info in listed:
        below = str(info["name"]).rstrip("/")
        if info["type"] != "directory":
            yield info
        elif below != path and max_depth != 1:
            with contextlib.suppress(FileNotFoundError):
                inside = fs.ls(below, detail=True)
                yield from _walk(fs, below, max_depth and max_depth - 1, inside)
