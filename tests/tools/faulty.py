"""A file system that fails: fsspec's `faulty://` over another one, whose k-th operation goes wrong."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import fsspec
from fsspec.spec import AbstractFileSystem

from latentcache.storage import local_files
from latentcache.storage.temporary import temporary_name

T = TypeVar("T")

#: A password that file systems put into their messages here; nobody may see it.
SECRET = "hunter2-not-a-real-secret"

READS = {"read", "ranges", "open"}
#: Kind of fault -> operations that it befalls; None: any.
KINDS: dict[str, set[str] | None] = {
    "transient": None,  # this operation fails once: reset, timed out, throttled, 503
    "outage": None,  # from this operation on nothing works until the storage is repaired
    "refused": None,  # 403, once
    "torn": {"write"},  # a write gets as far as its first half; then as an outage
    "torn_once": {"write"},
    "lost_reply": {"write"},  # the object is there, and the answer is lost; then as an outage
    "lost_reply_once": {"write"},
    "truncated": READS,  # fewer bytes than asked for, and no error
    "flipped": READS,  # one byte differs
    "delay": None,
}
WRITE_KINDS = {kind for kind, befalls in KINDS.items() if befalls == {"write"}}
DELAY_S = 0.02


def places_of(numbers: Mapping[str, int], every: int) -> Iterator[tuple[str, int]]:
    """Yield (kind, place) for one in `every` of the places of each kind, at least one, from any on.

    numbers: of places, as `Faults.num_places` gives them.
    """
    for kind, count in numbers.items():
        first = zlib.crc32(kind.encode()) % max(1, min(every, count))
        for at in range(first, count, every):
            yield kind, at


def _status_error() -> Exception:
    error = OSError("the server is busy")
    error.__cause__ = _ResponseError(503)
    return error


class _ResponseError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}, signed with {SECRET}")
        self.status = status


TRANSIENT: list[Callable[[], Exception]] = [
    lambda: ConnectionResetError(errno.ECONNRESET, f"reset by peer, signed with {SECRET}"),
    lambda: TimeoutError(f"timed out, signed with {SECRET}"),
    lambda: OSError(errno.EBUSY, "Please reduce your request rate."),
    _status_error,
]


@dataclass
class Faults:
    """What goes wrong, and when: the `at`-th operation that `kind` can befall; None: never.

    operations: (what, path) of every one, in order. struck: whether it came to that.
    """

    kind: str | None = None
    at: int = 0
    seed: int = 0
    operations: list[tuple[str, str]] = field(default_factory=list)
    struck: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(self.seed)
        self._eligible = 0
        self._is_down = False

    def repair(self) -> None:
        self.kind, self._is_down = None, False

    def num_places(self) -> dict[str, int]:
        """Return how many of the operations there were each kind of fault can befall."""
        return {
            kind: sum(befalls is None or what in befalls for what, _ in self.operations)
            for kind, befalls in KINDS.items()
        }

    def strike(self, what: str, path: str) -> str | None:
        """Count an operation; returns the kind of fault that it must show, or raises it."""
        with self._lock:
            self.operations.append((what, path))
            if self._is_down:
                raise self._random.choice(TRANSIENT)()
            befalls = KINDS[self.kind] if self.kind else set()
            if befalls is not None and what not in befalls:
                return None
            self._eligible += 1
            if self._eligible - 1 != self.at:
                return None
            assert self.kind is not None
            self.struck = True
            self._is_down = self.kind in ("outage", "torn", "lost_reply")
            if self.kind == "refused":
                raise PermissionError(errno.EACCES, f"403 for {SECRET}")
            if self.kind in ("transient", "outage"):
                raise self._random.choice(TRANSIENT)()
        if self.kind == "delay":
            time.sleep(DELAY_S)
        return self.kind

    def spoil(self, kind: str | None, data: bytes) -> bytes:
        """Return what a read gives where it is truncated or flipped."""
        if kind == "truncated":
            return data[: len(data) // 2]
        if kind == "flipped" and data:
            place = self._random.randrange(len(data))
            return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        return data

    def lose(self) -> Exception:
        """Return what a writer gets whose write was torn, or whose answer was lost."""
        return self._random.choice(TRANSIENT)()


#: The faults of every `faulty://` file system, by the name that its options give.
FAULTS: dict[str, Faults] = {}


class FaultyFileSystem(AbstractFileSystem):
    """Another file system with faults. Paths are those of the other.

    wraps, wrapped_options: the file system within. like: what it is taken for, as `protocol`: an object
    store ("s3"), whose writes appear whole; files over a network ("sftp"), which appear as they grow; or
    this machine's ("file"), whose writes and ranged reads are not fsspec's: see `faulty_local_files`.
    """

    protocol = "faulty"
    cachable = False

    def __init__(
        self,
        wraps: str,
        wrapped_options: Mapping[str, Any] | None = None,
        like: str = "s3",
        faults: str = "default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        options = {k: v for k, v in (wrapped_options or {}).items() if k != "password"}
        self._inner = fsspec.filesystem(wraps, **options)
        self._writes_whole = like == "s3"
        self.protocol = ("faulty", like)

    @property
    def _faults(self) -> Faults:
        return FAULTS[self.storage_options.get("faults", "default")]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("faulty://").rstrip("/")

    def invalidate_cache(self, path: str | None = None) -> None:
        self._inner.invalidate_cache(path)

    def info(self, path: str, **kwargs: Any) -> Any:
        self._faults.strike("info", path)
        return self._inner.info(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._faults.strike("ls", path)
        return self._inner.ls(path, detail=detail)

    def find(self, path: str, **kwargs: Any) -> Any:
        self._faults.strike("ls", path)
        return self._inner.find(path, **kwargs)

    def rm_file(self, path: str) -> None:
        self._faults.strike("delete", path)
        self._inner.rm_file(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._inner.makedirs(path, exist_ok=exist_ok)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._faults.strike("rename", path2)
        self._inner.mv(path1, path2)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        kind = self._faults.strike("write", path)
        is_torn = kind in ("torn", "torn_once")
        if is_torn and not self._writes_whole:
            self._inner.pipe_file(path, value[: len(value) // 2])
        if not is_torn:
            self._inner.pipe_file(path, value, **kwargs)
        if kind in WRITE_KINDS:
            raise self._faults.lose()

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        kind = self._faults.strike("read" if start is None and end is None else "ranges", path)
        return self._faults.spoil(kind, self._inner.cat_file(path, start=start, end=end))

    def cat_ranges(
        self, paths: Any, starts: Any, ends: Any, on_error: str = "return", **kwargs: Any
    ) -> list[Any]:
        found: list[Any] = []
        for place in zip(paths, starts, ends, strict=True):
            try:
                found.append(self.cat_file(*place))
            except Exception as error:
                if on_error == "raise":
                    raise
                found.append(error)
        return found

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._faults.strike("open", path)
        return _FaultyFile(self._inner.open(path, mode), self._faults, path)


class _FaultyFile:
    """A file that is read through faults; everything else is the other file's."""

    def __init__(self, file: Any, faults: Faults, path: str) -> None:
        self._file, self._faults, self._path = file, faults, path

    def read(self, length: int = -1) -> bytes:
        kind = self._faults.strike("read", self._path)
        if kind == "truncated":
            return b""  # as if the file ended here
        start = self._file.tell()
        data = self._faults.spoil(kind, self._file.read(length))
        self._file.seek(start + len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def faulty_local_files() -> Iterator[None]:
    """Let the faults befall what storage does to local files by itself."""
    read_ranges = local_files.read_ranges

    def faulty_write(write: Callable[[Path, bytes], T]) -> Callable[[Path, bytes], T]:
        def faulty(path: Path, data: bytes) -> T:
            faults = FAULTS["default"]
            kind = faults.strike("write", str(path))
            if kind in ("torn", "torn_once"):  # as a process leaves it that is killed in the middle
                path.parent.mkdir(parents=True, exist_ok=True)
                half = path.with_name(temporary_name(path.name))
                half.write_bytes(data[: len(data) // 2])
                raise faults.lose()
            written = write(path, data)
            if kind in WRITE_KINDS:
                raise faults.lose()
            return written

        return faulty

    def faulty_pread(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        kind = FAULTS["default"].strike("ranges", str(path))
        return [FAULTS["default"].spoil(kind, block) for block in read_ranges(path, ranges)]

    with (
        mock.patch.object(local_files, "replace", faulty_write(local_files.replace)),
        mock.patch.object(local_files, "create", faulty_write(local_files.create)),
        mock.patch.object(local_files, "read_ranges", faulty_pread),
    ):
        yield


fsspec.register_implementation("faulty", "tests.tools.faulty.FaultyFileSystem", clobber=True)
