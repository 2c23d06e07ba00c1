"""The lease: on storage that cannot create on condition, one run at a time writes to a cache.

A run writes `lease.json`, renews it while it goes on, and looks at it before everything else that it
writes. What that promises, and what it cannot, is in docs/format.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from latentcache.core.json_text import fault_of, parse_json
from latentcache.core.units import human_time
from latentcache.errors import LatentCacheError, LeaseError
from latentcache.format import checksum
from latentcache.format.paths import CACHE_JSON, LEASE
from latentcache.redaction import printable
from latentcache.storage.folder import Storage, redact
from latentcache.storage.spill import Data

log = logging.getLogger(__name__)

#: It is renewed so often in the time that it lasts: a storage that fails for a while does not end it.
RENEWALS = 4
#: Of two runs that take it at once, the later write stays; each looks after this time whose that is.
SETTLE_S = 1.0
#: The end of a job waits so long for a sign of life that is being written.
CLOSE_S = 30.0
MAX_LEASE_BYTES = 1 << 16
#: Tokens of the leases that this process holds: a lease of this process that is none of them was lost.
_HELD: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who works on a cache. place: the running system and its numbering of processes, None if unknown.

    started: of the process, in the system's ticks. Times are in s since the epoch.
    """

    token: str
    host: str
    pid: int
    place: str | None
    started: str | None
    taken_s: float
    expires_s: float

    def is_over(self, now_s: float) -> bool:
        """Tell whether it has expired, or its process is known to have ended."""
        return now_s > self.expires_s or self._is_dead()

    def _is_dead(self) -> bool:
        if self.place is None or self.place != this_place():
            return False
        if self.pid == os.getpid():
            return self.token not in _HELD
        return has_ended(self.pid, self.started)


_ADAPTER = pydantic.TypeAdapter(Lease)


def this_place() -> str | None:
    """Return what tells in which numbering of processes this one is: of a system since its start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return None


def process_start(pid: int) -> str | None:
    """Return when a process started, in the system's ticks; empty if it has ended, None if unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state == "Z" else fields[18]


def has_ended(pid: int, started: str | None) -> bool:
    """Tell whether a process of this system has ended, and its number is free, or another's."""
    try:
        os.kill(pid, 0)  # asks only
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    now = process_start(pid)
    return now is not None and now != started


def read_lease(storage: Storage) -> Lease | None:
    """Return the lease that is there, None if there is none. Raises LeaseError if it cannot be told."""
    try:
        return _read(storage)
    except ValueError:  # it may have been replaced just now
        pass
    try:
        return _read(storage)
    except ValueError as error:
        raise LeaseError(
            f"{redact(storage.url)}/{LEASE} is damaged ({error}), so who works on this cache is unknown. "
            "Nothing was changed. If no run does, add --take-lease."
        ) from None


def _read(storage: Storage) -> Lease | None:
    try:
        data = storage.read(LEASE)
    except FileNotFoundError:
        return None
    checksum.check(data)
    raw = parse_json(data)
    if isinstance(raw, dict):
        raw.pop(checksum.KEY, None)
    try:
        return _ADAPTER.validate_python(raw)
    except pydantic.ValidationError as error:
        raise ValueError(fault_of(error)) from None


class LeasedStorage(Storage):
    """A cache's folder that is written to only while its lease is held.

    It pickles with its token: workers hold the lease of their driver.
    """

    def __init__(self, url: str, options: Mapping[str, Any], token: str, lease_s: float) -> None:
        super().__init__(url, options)
        self.token, self._lease_s = token, lease_s

    def __reduce__(self) -> tuple[type[Storage], tuple[Any, ...]]:
        _, (url, options) = super().__reduce__()
        return type(self), (url, options, self.token, self._lease_s)

    def write(self, path: str, data: Data) -> None:
        """Write one object as a whole. Raises LeaseError, StorageError."""
        self.check_lease()
        super().write(path, data)

    def create(self, path: str, data: Data) -> bool:
        """Write one object as a whole unless one is there. Raises LeaseError, StorageError.

        Such a store may refuse the condition, and nobody else writes: so it looks first, and writes then.
        """
        self.check_lease()
        if self.exists(path):
            return False
        super().write(path, data)
        return True

    def delete(self, path: str) -> None:
        """Remove one object; does nothing if it is not there. Raises LeaseError."""
        self.check_lease()
        super().delete(path)

    def check_lease(self) -> None:
        """Raise LeaseError unless the lease is this run's. One that has expired is taken once more."""
        found = self._own()
        if time.time() > found.expires_s:
            self.write_lease(found)
            time.sleep(SETTLE_S)
            self._own()

    def renew(self) -> None:
        """Make the lease last longer. Raises LeaseError where it is another run's now."""
        self.write_lease(self._own())

    def write_lease(self, lease: Lease) -> None:
        """Write the lease, to last from now."""
        lease = dataclasses.replace(lease, expires_s=time.time() + self._lease_s)
        data = checksum.seal_json(dataclasses.asdict(lease))
        super().write(LEASE, data)

    def release(self) -> None:
        """Remove the lease, if it is still this run's."""
        found = read_lease(self)
        if found is not None and found.token == self.token:
            super().delete(LEASE)

    def _own(self) -> Lease:
        found = read_lease(self)
        if found is None or found.token != self.token:
            who = "it is gone" if found is None else f"{_holder(found)} has it now"
            raise LeaseError(
                f"this run has lost the lease of {redact(self.url)}: {who}. It stops before it writes "
                "anything more; what it has committed stays. When the other run has ended, go on with the "
                "same command."
            )
        return found


class Leaseholder:
    """Holds the lease of a cache that needs one, from when it is first asked for until a job ends.

    lease_s: how long it lasts without a sign of life. take: take it whoever has it.
    """

    def __init__(self, *, lease_s: float, take: bool = False) -> None:
        self._lease_s, self._take = lease_s, take
        self._held: LeasedStorage | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Leaseholder:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def over(self, storage: Storage, *, exclusive: bool) -> Storage:
        """Return the storage through which this job may write to a cache.

        exclusive: where the cache was made, the storage creates on condition, and needs no lease. The cache
        may have moved since, so this storage is tried. Raises LeaseError where another run has it.
        """
        if exclusive and storage.knows_conditions and storage.keeps(CACHE_JSON):
            return storage
        if self._held is None:
            self._held = self._closing.enter_context(_held(storage, self._lease_s, self._take))
        return self._held


class _Unguarded(Leaseholder):
    """Takes no lease."""

    def __init__(self) -> None:
        super().__init__(lease_s=0.0)

    def over(self, storage: Storage, *, exclusive: bool) -> Storage:
        """Return the storage as it is."""
        del exclusive
        return storage


#: For callers who know that nobody else writes to a cache.
UNGUARDED = _Unguarded()


@contextlib.contextmanager
def _held(storage: Storage, lease_s: float, take: bool) -> Iterator[LeasedStorage]:
    held = _take(storage, lease_s, take)
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(held, lease_s, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join(CLOSE_S)
        _HELD.discard(held.token)
        if not thread.is_alive():  # else the storage hangs, and the lease ends by itself
            with contextlib.suppress(LatentCacheError):
                held.release()


def _take(storage: Storage, lease_s: float, take: bool) -> LeasedStorage:
    """Take the lease of a cache. Raises LeaseError, StorageError."""
    if not take:
        found = read_lease(storage)
        if found is not None and not found.is_over(time.time()):
            raise LeaseError(_refusal(storage, found))
    now_s, pid, token = time.time(), os.getpid(), uuid.uuid4().hex
    held = LeasedStorage(*storage.__reduce__()[1], token, lease_s)
    lease = Lease(
        token=token,
        host=socket.gethostname(),
        pid=pid,
        place=this_place(),
        started=process_start(pid),
        taken_s=now_s,
        expires_s=now_s + lease_s,
    )
    held.write_lease(lease)
    time.sleep(SETTLE_S)
    found = read_lease(storage)
    if found is None or found.token != token:
        who = "" if found is None else f" ({_holder(found)})"
        raise LeaseError(
            f"{redact(storage.url)}: another run{who} took the lease of this cache at the same moment. "
            "Nothing was changed. Run the same command again when it has ended."
        )
    _HELD.add(token)
    return held


def _keep(held: LeasedStorage, lease_s: float, ended: threading.Event) -> None:
    """Renew a lease until it is to end, or is lost: what is written next says so."""
    while not ended.wait(lease_s / RENEWALS):
        try:
            held.renew()
        except LeaseError:
            return
        except LatentCacheError as error:
            log.warning("the lease was not renewed: %s", error)


def _refusal(storage: Storage, lease: Lease) -> str:
    now_s = time.time()
    age, left = (human_time(max(0.0, s)) for s in (now_s - lease.taken_s, lease.expires_s - now_s))
    return (
        f"{redact(storage.url)} is worked on by {_holder(lease)}, for {age}. Its storage cannot create an "
        "object on condition that it is not there, so one run at a time may write. Nothing was changed. "
        f"Wait until that run has ended. If it was killed, its lease ends in {left}; then run the same "
        "command again. If you know that it is dead, add --take-lease."
    )


def _holder(lease: Lease) -> str:
    return f"process {lease.pid} on {printable(lease.host)}"
