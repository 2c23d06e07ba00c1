"""One folder on any file system: whole-object writes, ranged reads, listings."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from latentcache.core.regular_files import open_regular
from latentcache.errors import ConfigError, StorageError
from latentcache.storage import below, limits, local_files, remote_objects, retry
from latentcache.storage.filesystems import (
    is_local_filesystem,
    open_filesystem,
    protocols,
    translated,
)
from latentcache.storage.spill import Data
from latentcache.storage.temporary import TEMPORARY_SUFFIX, temporary_name
from latentcache.storage.urls import is_url, join, redact, redact_url

__all__ = ["Storage", "StoredFile", "join", "redact"]

T = TypeVar("T")

#: File systems that can create on condition. A server in the place of one of these may still not.
_CREATES_EXCLUSIVELY = {"file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs"}
#: Listings of an object store that are under way at once.
NUM_LISTINGS = 32


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a folder. modified_s: since the epoch; None if the file system does not report it."""

    path: str
    num_bytes: int
    modified_s: float | None
    is_link: bool = False


class Storage:
    """One folder on any fsspec file system, addressed by paths relative to it.

    Safe to use from several threads; after a fork each process opens its own file system.
    Pickles as URL and options, for workers. Transient failures are tried again.

    Raises ConfigError of a URL that cannot be one, and StorageError where it cannot be opened.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        if not url:
            raise ConfigError(
                "the URL of a folder is empty: give a path, or a URL such as s3://b/x"
            )
        self.url = url if url.endswith("://") else url.rstrip("/") or "/"
        #: The URL; of a path, the absolute one, which it stays if the process goes to another folder.
        self.absolute_url = (
            self.url if is_url(self.url) else str(Path(self.url).expanduser().absolute())
        )
        self._options = dict(options or {})
        self._opened: tuple[int, Any, str] | None = None
        self._open()

    def __reduce__(self) -> tuple[type[Storage], tuple[str, dict[str, Any]]]:
        """Pickle with an absolute path: another process may be in another folder."""
        return type(self), (self.absolute_url, self._options)

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            options = dict(self._options)
            if (
                self._opened is not None
            ):  # forked: the parent's handles and event loops are unusable
                options["skip_instance_cache"] = True
            try:
                fs, root = open_filesystem(self.absolute_url, options)
            except FileNotFoundError as error:  # of a chain the file that holds the others
                raise StorageError(f"cannot open {redact_url(self.url)}: no such file") from error
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    def connect(self) -> None:
        """Open the file system in this process unless it is open: once, before many threads would."""
        self._open()

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local file system."""
        return is_local_filesystem(self._open()[0])

    def local_path(self, path: str = "") -> Path:
        """Return the local path; only if `is_local`."""
        return Path(self._full(path))

    def _full(self, path: str) -> str:
        root = self._open()[1]
        return f"{root}/{path}" if path else root or "/"

    def _do(self, what: str, path: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call into fsspec; see `limits` for `more_s`. Raises FileNotFoundError and StorageError."""
        more_s = kwargs.pop("more_s", lambda: 0.0)
        call = functools.partial(function, *args, **kwargs)
        if not self.is_local:
            call = functools.partial(limits.call, function, *args, more_s=more_s, **kwargs)
        with translated(what, join(self.url, path), self._options):
            return retry.call(call)

    def write(self, path: str, data: Data) -> None:
        """Write one object as a whole: readers see the old bytes or the new ones, never a part.

        On an object store this is one PUT; above the file system's limit (100 MiB on S3) it is a
        multipart upload, which appears when it is complete.
        """
        self._write(path, data, local_files.replace, remote_objects.put)

    def create(self, path: str, data: Data) -> bool:
        """Write one object as a whole unless one is there; returns whether it was written.

        If several do so at once, one succeeds on local files and on stores with conditional writes (S3,
        Google); on others several may. After a lost answer it may be False although this call wrote it.
        Where a store refuses the condition, nothing is written without it: see `LeasedStorage`. Raises
        StorageError.
        """
        return self._write(path, data, local_files.create, remote_objects.create)

    @property
    def knows_conditions(self) -> bool:
        """Whether its kind of storage is known for creating objects on condition."""
        return bool(_CREATES_EXCLUSIVELY & set(protocols(self._open()[0])))

    def creates_exclusively(self, path: str) -> bool:
        """Tell whether the storage creates an object only if it is not there, however many try at once.

        It must be known for that: of others, such as SFTP, one client cannot tell. And the same object is
        created twice, since some stores accept the condition and ignore it. It is tried under a temporary
        name of `path`, so that what a killed process or another run has there is no object of anybody.
        Where nothing may be deleted, it stays, and is listed by `clean`. Raises StorageError.
        """
        if not self.knows_conditions:
            return False
        path = temporary_name(path)
        try:
            if self.is_local and not self._do(
                "write", path, local_files.has_links, self.local_path(path)
            ):
                return False
        except FileNotFoundError:
            raise self._nowhere(path) from None
        try:
            self.create(path, b"1")  # False where the reply was lost, and it was tried again
            return not self.create(path, b"2") and self.read(path) != b"2"
        except StorageError as error:
            if not _refuses_conditions(error):
                raise
            return False
        finally:
            with contextlib.suppress(StorageError):
                self.delete(path)

    def keeps(self, path: str) -> bool:
        """Tell whether an object that is there stays if it is created again; True if it is not there.

        Some stores accept the condition and ignore it, and some refuse it. The object is created with its
        own bytes, so nothing is lost where it does not stay. Raises StorageError.
        """
        if self.is_local:
            return True
        try:
            return not self.create(path, self.read(path))
        except FileNotFoundError:
            return True
        except StorageError as error:
            if not _refuses_conditions(error):
                raise
            return False

    def _write(
        self,
        path: str,
        data: Data,
        write_local: Callable[[Path, Data], T],
        write_remote: Callable[[Any, str, Data], T],
    ) -> T:
        try:
            if self.is_local:
                return self._do("write", path, write_local, self.local_path(path), data)
            more_s = functools.partial(limits.time_of, len(data))
            where = (self._open()[0], self._full(path))
            return self._do("write", path, write_remote, *where, data, more_s=more_s)
        except FileNotFoundError:
            raise self._nowhere(path) from None

    def _nowhere(self, path: str) -> StorageError:
        return StorageError(
            f"cannot write {redact(join(self.url, path))}: there is no such bucket or folder. "
            "Create it first, or correct the URL."
        )

    def read(self, path: str) -> bytes:
        """Read an object. Raises FileNotFoundError."""
        fs, full = self._open()[0], self._full(path)
        read, place = (local_files.read, Path(full)) if self.is_local else (fs.cat_file, full)
        found = self._do("read", path, read, place, more_s=self._reading_s(path))
        return cast(bytes, found)

    def _reading_s(self, path: str, num_bytes: float = math.inf) -> Callable[[], float]:
        """Return what tells how long reading an object, or so much of it, may take."""
        return lambda: limits.time_of(int(min(num_bytes, self.size(path))))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read (offset, length) ranges of one object, concurrently if the file system can.

        Raises FileNotFoundError. A range past the end gives fewer bytes than asked for.
        """
        if self.is_local:
            return self._do("read", path, local_files.read_ranges, self.local_path(path), ranges)
        fs, full = self._open()[0], self._full(path)
        found: dict[int, bytes] = {}

        def read() -> None:
            missing = [n for n in range(len(ranges)) if n not in found]
            starts = [ranges[n][0] for n in missing]
            ends = [sum(ranges[n]) for n in missing]
            got = fs.cat_ranges([full] * len(missing), starts, ends, on_error="return")
            found.update({n: g for n, g in zip(missing, got, strict=True) if isinstance(g, bytes)})
            for n, other in zip(missing, got, strict=True):
                if n not in found:
                    found[n] = remote_objects.bytes_or_raise(other)

        self._do("read", path, read, more_s=self._reading_s(path, sum(n for _, n in ranges)))
        return [found[n] for n in range(len(ranges))]

    def read_into(self, path: str, wanted: Iterable[tuple[int, memoryview]]) -> Iterator[int]:
        """Fill buffers from offsets of one local file, and yield how many bytes each one got.

        Each is filled when its turn comes, so all may be the same buffer. Only if `is_local`. Raises
        FileNotFoundError.
        """
        with translated("read", join(self.url, path), self._options):
            fd = retry.call(lambda: open_regular(self._full(path)))
            try:
                for offset, buffer in wanted:
                    yield retry.call(functools.partial(local_files.read_into, fd, offset, buffer))
            finally:
                os.close(fd)

    def exists(self, path: str) -> bool:
        """Tell whether an object is there; a refused request is an error, not a no."""
        return self.facts(path) is not None

    def size(self, path: str) -> int:
        """Return the bytes of an object. Raises FileNotFoundError."""
        info = self.facts(path)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", redact(join(self.url, path)))
        return int(info["size"] or 0)

    def facts(self, path: str) -> Mapping[str, Any] | None:
        """Return what the file system says of an object, such as `size`; None if it is not there."""
        fs = self._open()[0]
        try:
            return cast("Mapping[str, Any]", self._do("look up", path, fs.info, self._full(path)))
        except FileNotFoundError:
            return None

    def list(self, path: str) -> dict[str, int]:
        """Return {file name: bytes} of the finished objects directly in a folder; {} if none."""
        fs, full = self._open()[0], self._full(path)
        fs.invalidate_cache(full)
        try:
            entries = self._do("list", path, fs.ls, full, detail=True, more_s=limits.listing_s)
        except FileNotFoundError:
            return {}
        files = {str(e["name"]): e["size"] or 0 for e in entries if e["type"] == "file"}
        files.pop(full, None)  # file systems list a file as itself
        names = {n.rsplit("/", 1)[-1]: size for n, size in files.items() if not n.endswith("/")}
        return {n: size for n, size in names.items() if not n.endswith(TEMPORARY_SUFFIX)}

    def names(self, path: str, prefixes: Sequence[str] = ()) -> Sequence[str]:
        """Return the names of the finished objects directly in a folder; none if it is not there.

        prefixes: beginnings that all names have which matter. An object store lists each by itself, many
        at a time: it gives 1,000 names a request, and else one request after the other.
        """
        fs, full = self._open()[0], self._full(path)
        if self.is_local:
            found = self._do("list", path, local_files.names_in, full)
        elif prefixes and remote_objects.lists_prefixes(fs):
            fs.invalidate_cache(full)

            def list_one(prefix: str) -> Iterable[str]:
                find = functools.partial(fs.find, full, prefix=prefix)
                return cast("list[str]", self._do("list", path, find, more_s=limits.listing_s))

            with ThreadPoolExecutor(NUM_LISTINGS) as pool:
                paths = {path for paths in pool.map(list_one, prefixes) for path in paths}
            found = [path.rsplit("/", 1)[-1] for path in paths if path.rpartition("/")[0] == full]
        else:
            return [*self.list(path)]
        return [name for name in found if not name.endswith(TEMPORARY_SUFFIX)]

    def folders(self, path: str) -> Sequence[str]:
        """Return the names of the folders directly in a folder, in order; none if it is not there."""
        fs, full = self._open()[0], self._full(path)
        fs.invalidate_cache(full)
        try:
            entries = self._do("list", path, fs.ls, full, detail=True, more_s=limits.listing_s)
        except FileNotFoundError:
            return []
        names = (str(e["name"]).rstrip("/") for e in entries if e["type"] == "directory")
        return sorted(name.rsplit("/", 1)[-1] for name in names if name != full)

    def files(self, under: str = "") -> Sequence[StoredFile]:
        """Return everything in the folder and below it, temporary files too, by path.

        under: a folder of it, of which only what is below is listed; nothing if it is not there. Symbolic
        links are listed and not followed.
        """
        fs, root = self._open()
        try:
            if self.is_local:
                listed = self._do(
                    "list", under, lambda: [*local_files.files_below(Path(root), under)]
                )
                found = [_local_file(*file) for file in listed]
            else:
                start = self._full(under)
                fs.invalidate_cache(start)
                find = functools.partial(below.files_below, fs, start)
                infos = self._do("list", under, find, more_s=limits.listing_s)
                found = [_stored_file(info, root) for info in infos.values()]
        except FileNotFoundError:
            if not under:
                raise
            return []
        return sorted(found, key=lambda file: file.path)

    def delete(self, path: str) -> None:
        """Remove one object; does nothing if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            self._do("delete", path, self._open()[0].rm_file, self._full(path))


def _local_file(path: str, facts: os.stat_result, is_link: bool) -> StoredFile:
    return StoredFile(
        path=path, num_bytes=facts.st_size, modified_s=facts.st_mtime, is_link=is_link
    )


def _stored_file(info: Mapping[str, Any], root: str) -> StoredFile:
    times = (info.get(name) for name in ("LastModified", "mtime", "created"))
    modified: Any = next((time for time in times if time is not None), None)
    return StoredFile(
        path=str(info["name"])[len(root) :].lstrip("/"),
        num_bytes=info["size"] or 0,
        modified_s=modified.timestamp() if hasattr(modified, "timestamp") else None,
    )


def _refuses_conditions(error: StorageError) -> bool:
    return retry.http_status(error) in remote_objects.NO_CONDITIONS and not retry.is_transient(
        error
    )
