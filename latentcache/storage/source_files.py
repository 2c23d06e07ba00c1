"""A corpus's files on any URL: found, listed and read. Transient failures are tried again.

What a remote server is asked for has a limit as a whole: see `limits`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from latentcache.core.regular_files import kind_of_file, open_regular
from latentcache.errors import StorageError
from latentcache.storage import below, limits, retry
from latentcache.storage.filesystems import (
    glob_regex,
    is_local_filesystem,
    open_filesystem,
    translated,
)
from latentcache.storage.http_reads import (
    InOrder,
    NotTheRangeError,
    http_reader,
    is_http_filesystem,
    open_http,
)
from latentcache.storage.urls import LOCAL_SCHEMES, has_magic, is_http, redact_url, scheme_of

T = TypeVar("T")


#: File systems that can be asked to read nothing ahead: s3fs reads 50 MiB for each byte, http 5 MiB.
_READING_AHEAD = frozenset({"http", "https", "s3", "s3a"})


class RangesIgnoredError(StorageError):
    """A server gives a whole file, or another range, where a range of its bytes is asked for."""


def _ranges_ignored(url: str, options: Mapping[str, Any] | None) -> RangesIgnoredError:
    return RangesIgnoredError(
        f"cannot read {redact_url(url, options or {})}: it gives the whole file, or another part of it, "
        "where a range of bytes is asked for; copy the file to a storage that gives ranges"
    )


@contextlib.contextmanager
def open_source(
    url: str,
    options: Mapping[str, Any] | None = None,
    *,
    for_parts: bool = False,
    block_bytes: int = io.DEFAULT_BUFFER_SIZE,
) -> Iterator[IO[bytes]]:
    """Open any URL for reading. Opening and reading raise FileNotFoundError and StorageError.

    for_parts: a few parts will be read, far from one another, so nothing is read ahead of them.
    block_bytes: the least that is asked of a remote file at a time.
    """
    fs, path = open_filesystem(url, options)
    exact = for_parts and scheme_of(url) in _READING_AHEAD
    settings = {"cache_type": "none"} if exact else {}
    opening = functools.partial(fs.open, path, "rb", **settings)
    if is_http_filesystem(fs):
        opening = functools.partial(open_http, fs, path, **settings)
    if is_local_filesystem(fs):
        opening = functools.partial(_open_local, path)
    with _read(url, options, opening) as file:
        if is_local_filesystem(fs):
            yield file
        else:
            ahead_bytes = 0 if exact else int(getattr(file, "blocksize", None) or 0)
            ahead_bytes = file.size if isinstance(file, InOrder) else ahead_bytes
            raw = _RemoteFile(file, url, options, ahead_bytes)
            with io.BufferedReader(raw, block_bytes) as remote:
                yield remote


class _RemoteFile(io.RawIOBase):
    """A remote file that retries reads, whose errors say what to do, and that never ends early.

    ahead_bytes: that its file system may read beyond what it is asked for. Where an http server gives no
    ranges, it is read in order.
    """

    def __init__(
        self, file: Any, url: str, options: Mapping[str, Any] | None, ahead_bytes: int
    ) -> None:
        self._file, self._url, self._options = file, url, options
        self._position = 0
        self._ahead_bytes = ahead_bytes
        self._pace = limits.Pace(ahead_bytes)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._read_within_limits(len(view))
        except RangesIgnoredError:
            self._read_in_order()
            data = self._read_within_limits(len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if isinstance(self._file, InOrder):
            self._file.close()
        super().close()

    def _read_in_order(self) -> None:
        self._file = InOrder(self._file.fs, self._file.path, self._file.size)
        self._ahead_bytes = self._file.size
        self._pace = limits.Pace(self._ahead_bytes)

    def _read_within_limits(self, length: int) -> bytes:
        more_s = functools.partial(limits.time_of, length + self._ahead_bytes)
        started = time.monotonic()
        data = _read(self._url, self._options, self._read_at, length, more_s=more_s)
        with translated("read", self._url, self._options or {}):
            self._pace.add(len(data), time.monotonic() - started)
        return data

    def _read_at(self, length: int) -> bytes:
        if self._file.tell() != self._position:  # a read failed and left it elsewhere
            self._file.seek(self._position)
        try:
            data = cast(bytes, self._file.read(length))
        except NotTheRangeError:
            raise _ranges_ignored(self._url, self._options) from None
        size = getattr(self._file, "size", None)
        if not data and length and size is not None and self._position < size:
            raise ConnectionError(f"the answer ended at byte {self._position} of {size}")
        return data


def _read(
    url: str,
    options: Mapping[str, Any] | None,
    function: Callable[..., T],
    *args: Any,
    more_s: Callable[[], float] = lambda: 0.0,
    **kwargs: Any,
) -> T:
    """Call what reads; `more_s`: see `limits.call`, which a remote URL gets."""
    call = functools.partial(function, *args, **kwargs)
    if scheme_of(url) not in LOCAL_SCHEMES:
        call = functools.partial(limits.call, function, *args, more_s=more_s, **kwargs)
    with translated("read", url, options or {}):
        return retry.call(call)


def _open_local(path: str) -> IO[bytes]:
    return os.fdopen(open_regular(path), "rb")


def _read_start(path: str, max_bytes: int | None) -> bytes:
    with _open_local(path) as file:
        return file.read() if max_bytes is None else file.read(max_bytes + 1)


def is_directory(url: str, options: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a URL is a folder with something in it (object stores know no empty ones)."""
    if scheme_of(url) in ("http", "https"):  # fsspec would download the file to find out
        return url.endswith("/")
    return _type_of(url, options) == "directory"


def is_file(url: str, options: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a URL is a file."""
    return _type_of(url, options) == "file"


def _type_of(url: str, options: Mapping[str, Any] | None) -> str | None:
    """Return `file`, `directory`, or None if nothing is there. isdir would take a refusal for a no."""
    return _type_in(*open_filesystem(url, options), url, options)


def _type_in(fs: Any, path: str, url: str, options: Mapping[str, Any] | None) -> str | None:
    try:
        return str(_read(url, options, fs.info, path)["type"])
    except FileNotFoundError:
        return None


def irregular(url: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Return what a local path is where it is no regular file; to open a pipe can take for ever.

    None of regular and of remote files. Raises FileNotFoundError and StorageError.
    """
    fs, path = open_filesystem(url, options)
    if not is_local_filesystem(fs):
        return None
    return kind_of_file(_read(url, options, Path(path).stat).st_mode)


def file_facts(url: str, options: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return what the file system says of a file: size, and its time of change or its tag.

    Raises FileNotFoundError and StorageError.
    """
    fs, path = open_filesystem(url, options)
    if is_local_filesystem(fs):
        found = _read(url, options, Path(path).stat)
        return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
    return cast("Mapping[str, Any]", _read(url, options, fs.info, path))


def is_absent(
    url: str, options: Mapping[str, Any] | None = None, neighbours: Sequence[str] = ()
) -> bool:
    """Tell whether a file that was not found is truly absent: what is beside it is there, and it is not.

    Of a mount that is gone, or a server that has lost its disk, nothing is there. neighbours: other
    sources, which are asked for on http, as it has no folders. Raises StorageError.
    """
    fs, path = open_filesystem(url, options)
    if is_local_filesystem(fs):
        return _read(url, options, _is_absent_here, path)
    if is_http(url):
        return any(_is_there(other, options) for other in neighbours)
    return _type_in(fs, fs._parent(path), url, options) == "directory"


def _is_absent_here(path: str) -> bool:
    try:
        with os.scandir(
            Path(os.path.realpath(path)).parent
        ) as entries:  # links lead to other disks
            has_neighbours = next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
    return has_neighbours and not Path(path).exists()


def _is_there(url: str, options: Mapping[str, Any] | None) -> bool:
    try:
        file_facts(url, options)
    except FileNotFoundError:
        return False
    return True


def find_files(
    url: str, options: Mapping[str, Any] | None = None, max_depth: int | None = None
) -> list[str]:
    """Return the paths, relative to the folder and sorted, of the files in it and in its folders.

    Symbolic links are followed, except into a folder that holds them. Raises StorageError if a
    part of the tree cannot be listed: a corpus must not silently lose it.
    """
    return list(find_sizes(url, options, max_depth))


def find_sizes(
    url: str,
    options: Mapping[str, Any] | None = None,
    max_depth: int | None = None,
    special: set[str] | None = None,
) -> dict[str, int | None]:
    """Return what `find_files` does, each with its size where listing tells it: not of local files.

    special: gets the names of pipes, sockets and devices, which are not returned.
    """
    fs, root = open_filesystem(url, options)
    if is_local_filesystem(fs):
        apart: set[str] = set() if special is None else special
        walk = functools.partial(_walk, root, max_depth, apart)
        return dict.fromkeys(sorted(_read(url, options, lambda: list(walk()))))
    root = root.rstrip("/")
    find = functools.partial(below.files_below, fs, root, max_depth)
    listed = _read(url, options, find, more_s=limits.listing_s)
    found = {
        path[len(root) :].lstrip("/"): facts.get("size")
        for path, facts in listed.items()
        if path != root and not path.endswith("/")
    }
    return dict(sorted(found.items()))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _walk(root: str, max_depth: int | None, special: set[str]) -> Iterator[str]:
    stack: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while stack:
        relative, above = stack.pop()
        folder = Path(root, relative)
        found = folder.stat()
        here = (found.st_dev, found.st_ino)
        if here in above:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{relative}/{entry.name}" if relative else entry.name
                if not _is_folder(entry):
                    # A broken link stays a source and fails as one.
                    if entry.is_symlink() or entry.is_file():
                        yield name
                    else:
                        special.add(name)
                elif max_depth is None or len(above) + 1 < max_depth:
                    stack.append((name, (*above, here)))


def glob_files(pattern: str, options: Mapping[str, Any] | None = None) -> tuple[str, list[str]]:
    """Return a glob's part before the first wildcard, and the matching files, relative to it."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if has_magic(part))
    base, rest = "/".join(parts[:fixed]) or ("/" if fixed else "."), parts[fixed:]
    matches = re.compile(glob_regex("/".join(rest))).match
    depth = None if any("**" in part for part in rest) else len(rest)
    return base, [name for name in find_files(base, options, depth) if matches(name)]


def read_heads(
    urls: Sequence[str], num_bytes: int, options: Mapping[str, Any] | None = None
) -> list[bytes]:
    """Read the first bytes of files of one file system; of what cannot be read, nothing."""
    if not urls:
        return []
    fs = open_filesystem(urls[0], options)[0]
    paths = [open_filesystem(url, options)[1] for url in urls]
    if is_local_filesystem(fs):
        return [_head(path, num_bytes) for path in paths]
    more_s = functools.partial(limits.time_of, num_bytes * len(paths))
    more: dict[str, Any] = {"on_error": "return", "more_s": more_s}
    if is_http_filesystem(fs):
        found = _read(urls[0], options, http_reader(fs), paths, num_bytes, 0, **more)
    else:
        zeros, ends = [0] * len(paths), [num_bytes] * len(paths)
        found = _read(urls[0], options, fs.cat_ranges, paths, zeros, ends, **more)
    return [bytes(d[:num_bytes]) if isinstance(d, bytes | bytearray) else b"" for d in found]


def _head(path: str, num_bytes: int) -> bytes:
    with contextlib.suppress(OSError):
        if kind_of_file(Path(path).stat().st_mode) is None:
            return _read_start(path, num_bytes)[:num_bytes]
    return b""


def read_range(url: str, start: int, end: int, options: Mapping[str, Any] | None = None) -> bytes:
    """Read the bytes of a file from `start` up to `end`. Raises FileNotFoundError and StorageError."""
    fs, path = open_filesystem(url, options)

    def read() -> bytes:
        try:
            data = _range_of(fs, path, start, end)
        except NotTheRangeError:
            raise _ranges_ignored(url, options) from None
        if len(data) > end - start:
            raise _ranges_ignored(url, options)
        if len(data) < end - start:
            raise ConnectionError(f"the answer ended at byte {start + len(data)} of {end}")
        return data

    return _read(url, options, read, more_s=functools.partial(limits.time_of, end - start))


def _range_of(fs: Any, path: str, start: int, end: int) -> bytes:
    if is_http_filesystem(fs):
        return cast(bytes, http_reader(fs)([path], end - start, start)[0])
    return cast(bytes, fs.cat_file(path, start=start, end=end))


def read_many(
    urls: Sequence[str], options: Mapping[str, Any] | None = None, max_bytes: int | None = None
) -> list[bytes]:
    """Read small files of one file system, concurrently if it can. Raises FileNotFoundError.

    max_bytes: of a larger file, on this machine or on http, so much is read, and a byte more. The sizes of
    other remote ones are known from their listing: see `find_sizes`.
    """
    if not urls:
        return []
    fs = open_filesystem(urls[0], options)[0]
    paths = [open_filesystem(url, options)[1] for url in urls]
    if is_local_filesystem(fs):
        return _read(urls[0], options, lambda: [_read_start(path, max_bytes) for path in paths])
    most_bytes = (max_bytes or limits.STRETCH_BYTES) * len(paths)
    more: dict[str, Any] = {
        "on_error": "raise",
        "more_s": lambda: min(limits.LISTING_S, limits.time_of(most_bytes)),
    }
    if max_bytes is not None and is_http_filesystem(fs):
        found = _read(urls[0], options, http_reader(fs), paths, max_bytes + 1, **more)
    else:
        nones = [None] * len(paths)  # whole files; `cat` would take `[` in a name for a pattern
        found = _read(urls[0], options, fs.cat_ranges, paths, nones, nones, **more)
    return cast("list[bytes]", found)
