"""Remote sources on a local disk, whole or in part, shared by all decoding processes of a machine.

A source is a sparse file of its own size, and a list with the CRC32C of each block that is there. So a
block that a killed process has torn counts as absent. What changes at its URL gets another file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from latentcache.errors import StorageError
from latentcache.storage.part_files import Ranged, ranged
from latentcache.storage.parts import file_of
from latentcache.storage.room import DISK_BLOCK_BYTES, Room

#: What is fetched, and checked, as a whole. A part of a source costs up to so much more at both ends.
BLOCK_BYTES = 1 << 15
#: What one request asks for: a small part of the time that a source may give no byte, at any useful speed.
PIECE_BYTES = 8 << 20
#: A process waits so long for another that fetches the same; then it fetches, too.
LOCK_WAIT_S = 60.0
_POLL_S = 0.02
#: Of the disk's free room no more than this is taken, whatever the bound says.
_FREE_FRACTION = 0.5
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}")
#: In the list: one entry for the file, and one for each block. 0: absent.
_ENTRY = struct.Struct("<I")


@functools.cache
def _seal() -> int:
    """Return what says that a file is whole and of one content, until the machine starts again."""
    with contextlib.suppress(OSError):
        return _crc(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    return _crc(str(os.getpid()).encode())


class NoRoomError(Exception):
    """The bound, or the disk, leaves no room for a source, for all that is there is in use."""


class StaleError(Exception):
    """The source was replaced while it was read."""


class SourceCache:
    """Sources in a folder that any number of processes and runs of one user share.

    max_bytes: that they take in all; those in use are never removed. Raises OSError if there is no folder.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        self.folder = _private(folder or default_folder())
        self._max_bytes = max_bytes
        self._room = Room(self.folder, "*.data*", _remove)
        self._without_ranges: set[str] = set()

    def open(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        suffix: str = "",
        on_fetch: Callable[[bool], object] = lambda _: None,
    ) -> CachedSource | None:
        """Open a source; None where it cannot be read by ranges, or does not say whether it has changed.

        Raises FileNotFoundError and StorageError.
        """
        if origin_of(url) in self._without_ranges:
            return None
        remote = ranged(url, options)
        if remote is None or not 0 < remote.size <= self._max_bytes:
            return None
        digest = hashlib.blake2b(digest_size=20)
        for value in (
            url,
            remote.size,
            remote.validator,
            sorted((options or {}).items(), key=repr),
        ):
            digest.update(f"{value!r}\0".encode())
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        path = self.folder / f"{digest.hexdigest()}.data{suffix}"
        with contextlib.suppress(OSError):  # a disk that is full, or knows no locks
            return CachedSource(path, remote, self._take, on_fetch)
        return None

    def give_up(self, url: str) -> bool:
        """Note that the server of a URL gives no ranges. Return whether that is news."""
        is_new = origin_of(url) not in self._without_ranges
        self._without_ranges.add(origin_of(url))
        return is_new

    def _take(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        with self._room.used() as used:
            taken = used.add(0)
        bound = min(self._max_bytes, taken + int(free * _FREE_FRACTION))
        if not self._room.take(num_bytes, bound):
            raise NoRoomError

    def enter(self) -> None:
        """Say that sources here will be wanted, until `leave`. Raises OSError."""
        self._users = os.open(self.folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def leave(self, *, clear: bool) -> None:
        """Say that they are no longer wanted here; clear: if nobody else wants them, remove them."""
        if clear and _try_lock(self._users):
            self.clear()
        os.close(self._users)

    def clear(self) -> None:
        """Remove all sources that nobody uses."""
        with contextlib.suppress(OSError), self._room.used() as used:
            for file in self.folder.glob("*.data*"):
                _remove(file)
            used.forget()


def source_cache(max_bytes: int) -> SourceCache | None:
    """Return what the processes of this machine share; None for 0, and where there is no folder for it."""
    with contextlib.suppress(OSError):
        return SourceCache(max_bytes) if max_bytes else None
    return None


def user_of_sources(max_bytes: int) -> SourceCache | None:
    """Return the same, entered."""
    cache = source_cache(max_bytes)
    with contextlib.suppress(OSError):
        if cache is not None:
            cache.enter()
        return cache
    return None


class CachedSource:
    """A source of which blocks come as they are asked for.

    on_fetch: called with True before each piece, and while it waits for another process that fetches it;
    with False at the end. path: of the sparse file. Reading it gives zeros where nothing has been fetched.
    num_fetched, fetch_s: bytes that this object has fetched, and the seconds that it took, waiting for
    others included.
    """

    def __init__(
        self,
        path: Path,
        remote: Ranged,
        take: Callable[[int], None],
        on_fetch: Callable[[bool], object],
    ) -> None:
        self.path, self.size = str(path), remote.size
        self._remote, self._take, self._on_fetch = remote, take, on_fetch
        self._fd = _open_in_use(path, remote.size)
        self._list = os.open(_list_of(path), os.O_RDWR | os.O_CREAT, 0o600)
        num_blocks = -(-self.size // BLOCK_BYTES)
        if os.fstat(self._list).st_size != _ENTRY.size * (1 + num_blocks):
            os.ftruncate(self._list, _ENTRY.size * (1 + num_blocks))
        self._has = bytearray(num_blocks)
        self.num_fetched = 0
        self.fetch_s = 0.0
        #: What a fetch has raised: FFmpeg, which reads through this, may take it for the end of the file.
        self.failure: BaseException | None = None

    def close(self) -> None:
        """Let the file go, which others may then remove."""
        os.close(self._fd)
        os.close(self._list)

    @property
    def is_whole(self) -> bool:
        """Tell whether all of it is there, of one content."""
        data = os.pread(self._list, _ENTRY.size, 0)
        return len(data) == _ENTRY.size and _ENTRY.unpack(data)[0] == _seal()

    def read(self, start: int, length: int, *, only_present: bool = False) -> bytes:
        """Read bytes, fetched where they are absent. only_present: those come as zeros."""
        length = min(length, self.size - start)
        if length <= 0:  # damage can lead past the end, and to where no offset of the system does
            return b""
        if not only_present:
            self.ensure(start, start + length)
        data = os.pread(self._fd, length, start)
        return data if len(data) == length else data + bytes(length - len(data))

    def has(self, start: int, end: int) -> bool:
        """Tell whether a range is there."""
        return self._absent(*_blocks(start, min(end, self.size))) is None

    def ensure(self, start: int, end: int) -> None:
        """Fetch what is absent of a range. Raises FileNotFoundError, StorageError and NoRoomError."""
        first, last = _blocks(start, min(end, self.size))
        if self._absent(first, last) is None:
            return
        started = time.monotonic()
        self._on_fetch(True)
        try:
            while (run := self._absent(first, last)) is not None:
                with self._locked():
                    if (run := self._absent(*run)) is not None:
                        self._fetch(*run)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.fetch_s += time.monotonic() - started
            self._on_fetch(False)

    def ensure_all(self) -> None:
        """Fetch all of it. Raises StaleError if it was replaced meanwhile, and what `ensure` does."""
        if self.is_whole:
            return
        self.ensure(0, self.size)
        if self.num_fetched < self.size or self.size > PIECE_BYTES:
            self.check()  # one answer has one content; several may not
        os.pwrite(self._list, _ENTRY.pack(_seal()), 0)

    def forget_failure(self) -> None:
        """Let what failed be tried again."""
        self.failure = None

    def check(self) -> None:
        """Raise StaleError if the source is no longer the one that was opened, and forget what there is."""
        if self.is_whole or self._remote.is_same():
            return
        os.ftruncate(self._list, 0)
        os.ftruncate(self._list, _ENTRY.size * (1 + len(self._has)))
        raise StaleError

    def _absent(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the first run of absent blocks of a range, of at most a piece."""
        if self._has.find(0, first, last) < 0:
            return None
        if self.is_whole:
            self._has[:] = b"\1" * len(self._has)
            return None
        self._look(first, last)
        begin = self._has.find(0, first, last)
        if begin < 0:
            return None
        end = self._has.find(1, begin, last)
        return begin, min(last if end < 0 else end, begin + PIECE_BYTES // BLOCK_BYTES)

    def _look(self, first: int, last: int) -> None:
        """Note which blocks others have fetched."""
        data = os.pread(self._list, _ENTRY.size * (last - first), _ENTRY.size * (1 + first))
        whole = len(data) // _ENTRY.size * _ENTRY.size
        for number, (crc,) in enumerate(_ENTRY.iter_unpack(data[:whole]), first):
            if crc and not self._has[number]:
                block = os.pread(self._fd, BLOCK_BYTES, number * BLOCK_BYTES)
                self._has[number] = crc == _crc(block)

    def _fetch(self, first: int, last: int) -> None:
        start, end = first * BLOCK_BYTES, min(last * BLOCK_BYTES, self.size)
        self._take(-(-(end - start) // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES)
        self._on_fetch(True)
        try:
            data = self._remote.read(start, end)
        except StorageError:
            self.check()
            raise
        try:
            _write(self._fd, data, start)
            crcs = [_crc(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
            _write(self._list, b"".join(map(_ENTRY.pack, crcs)), _ENTRY.size * (1 + first))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoomError from error
            raise
        self._has[first:last] = b"\1" * (last - first)
        self.num_fetched += len(data)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock, so that each byte is fetched once; but to write it twice is no harm."""
        give_up = time.monotonic() + LOCK_WAIT_S
        while not (has_lock := _try_lock(self._list)) and time.monotonic() < give_up:
            self._on_fetch(True)
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            if has_lock:
                fcntl.flock(self._list, fcntl.LOCK_UN)


def origin_of(url: str) -> str:
    """Return the scheme and the host, or bucket, of a URL."""
    return "/".join(file_of(url).split("/")[:3])


def default_folder() -> Path:
    """Return the folder that the processes of this user share, in that for temporary files."""
    return Path(tempfile.gettempdir(), f"latentcache-sources-{os.getuid()}")


def _private(folder: Path) -> Path:
    """Make a folder of this user's own. Raises OSError where somebody else has put one there."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "not a private folder of this user", str(folder))
    return folder


def _list_of(file: Path) -> Path:
    return file.with_name(f"{file.name.partition('.')[0]}.list")


def _open_in_use(path: Path, size: int) -> int:
    """Open a file, of this size, so that nobody removes it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:  # it was not removed in between
            break
        os.close(fd)
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
    os.utime(fd)  # eviction goes by the time of last use
    return fd


def _remove(file: Path) -> bool:
    """Remove a file and its list, unless somebody uses it."""
    try:
        fd = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(fd):
            return False
        _list_of(file).unlink(missing_ok=True)
        file.unlink(missing_ok=True)  # last: who waits for the lock then sees that both are gone
    finally:
        os.close(fd)
    return True


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _crc(data: bytes) -> int:
    """Return a checksum that is not 0."""
    return int(google_crc32c.value(data)) or 1


def _blocks(start: int, end: int) -> tuple[int, int]:
    return start // BLOCK_BYTES, -(-end // BLOCK_BYTES)


def _write(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count
