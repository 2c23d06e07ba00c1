"""What an export has written so far, so that one that was stopped goes on: its files' sizes and CRC32Cs."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable
from types import TracebackType

from latentcache.errors import StorageError
from latentcache.exchange.mark import LIST, PART, Written, list_bytes, read_list, size_of, sizes_in
from latentcache.storage.folder import Storage

#: What may be written again after a kill: this part of what the run took, but no less and no more seconds.
LOST_PART, LEAST_S, MOST_S = 0.05, 1.0, 60.0


class Journal:
    """Records of an export's files. A file without one is written again, whatever is there.

    Records go to storage from time to time, each time to an object of their own: several runs may write one
    export at once. For one thread.
    """

    def __init__(self, out: Storage) -> None:
        self._out = out
        self._files = _recorded(out)
        self._new: dict[str, Written] = {}
        self._begun_s = self._kept_s = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Keep what is recorded where the run ends before the export does."""
        with contextlib.suppress(StorageError):
            self._keep()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the files that are not there as they were written."""
        sizes = sizes_in(self._out, self._files)
        whole = {path for path, file in self._files.items() if sizes[path] == file.num_bytes}
        return [path for path in paths if path not in whole]

    def has(self, path: str, file: Written) -> bool:
        """Tell whether a file is there and was recorded as this."""
        return self._files.get(path) == file and size_of(self._out, path) == file.num_bytes

    def add(self, path: str, file: Written) -> None:
        """Record a file that has been written."""
        self._files[path] = self._new[path] = file
        now = time.monotonic()
        if now - self._kept_s >= min(MOST_S, max(LEAST_S, LOST_PART * (now - self._begun_s))):
            self._keep()

    def _keep(self) -> None:
        if self._new:
            self._out.write(f"{PART}{uuid.uuid4().hex}", list_bytes(self._new))
            self._new = {}
        self._kept_s = time.monotonic()

    def close(self, paths: Iterable[str]) -> None:
        """Write the list of all files: the export is whole."""
        files = {path: self._files[path] for path in paths}
        if _list_or_none(self._out, LIST) != files:
            self._out.write(LIST, list_bytes(files))
        self._new = {}
        for name in _parts(self._out):
            with contextlib.suppress(StorageError):  # where nothing may be deleted
                self._out.delete(name)


def _parts(out: Storage) -> list[str]:
    return sorted(name for name in out.list("") if name.startswith(PART))


def _recorded(out: Storage) -> dict[str, Written]:
    """Return what earlier runs recorded, but nothing of a file of which two lists say different things."""
    found: dict[str, Written] = {}
    differ: set[str] = set()
    for name in (LIST, *_parts(out)):
        for path, file in (_list_or_none(out, name) or {}).items():
            if found.setdefault(path, file) != file:
                differ.add(path)
    return {path: file for path, file in found.items() if path not in differ}


def _list_or_none(out: Storage, name: str) -> dict[str, Written] | None:
    """Return a list, or None if it is not there or damaged: its files are written again then."""
    try:
        return read_list(out, name)
    except (FileNotFoundError, ValueError):
        return None
