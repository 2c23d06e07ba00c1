"""How long one operation on remote storage may take as a whole: servers may send a byte a minute for ever.

Time-outs of clients count from byte to byte. Here an operation has BASE_S, and then the time that its bytes
would take at a speed that no usable storage falls below.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

BASE_S = 60.0
#: Sixty-four requests that share a line of 4 MiB/s have as much each.
BYTES_PER_S = 64 << 10
#: A listing comes in pages, whose number nobody knows before: a million objects take some minutes.
LISTING_S = 3600.0
#: What is read bit by bit has the time of one object of this size, again and again: a file may be as large
#: as it likes, and a server may not send a byte a second.
STRETCH_BYTES = 1 << 20


def time_of(num_bytes: int) -> float:
    """Return the seconds that so many bytes may take."""
    return num_bytes / BYTES_PER_S


def listing_s() -> float:
    """Return the seconds that a listing may take."""
    return LISTING_S


class Pace:
    """The time that many reads of one open file take together: a file system may return a byte at a time.

    ahead_bytes: what the file system reads beyond what it is asked for.
    """

    def __init__(self, ahead_bytes: int = 0) -> None:
        self._stretch_bytes = STRETCH_BYTES + ahead_bytes
        self._num_bytes, self._seconds = 0, 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """Count one read. Raises TimeoutError if those of this stretch took longer than all of it may."""
        self._num_bytes += num_bytes
        self._seconds += seconds
        if self._num_bytes >= self._stretch_bytes:
            self._num_bytes, self._seconds = 0, 0.0
        elif self._seconds > BASE_S + time_of(self._stretch_bytes):
            raise TimeoutError(f"only {self._num_bytes} bytes came within {self._seconds:.0f} s")


def call(
    function: Callable[..., T],
    *args: Any,
    more_s: Callable[[], float] = lambda: 0.0,
    **kwargs: Any,
) -> T:
    """Call what may hang. more_s: seconds beyond BASE_S, asked for only when those are over.

    Raises TimeoutError; the call is cancelled where its file system can do that, else left to itself.
    """
    future, allowed_s = _start(function, args, kwargs), BASE_S
    try:
        if not _is_done(future, BASE_S):
            allowed_s += more_s()
            if not _is_done(future, allowed_s - BASE_S):
                raise TimeoutError(f"it was not done within {allowed_s:.0f} s")
        return future.result()
    finally:
        future.cancel()


def _is_done(future: Future[Any], wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        future.exception(timeout=wait_s)
    return future.done()


def _start(function: Callable[..., T], args: Any, kwargs: Any) -> Future[T]:
    """Begin a call: in the loop of an asynchronous file system, or else in a thread of its own."""
    inner = getattr(function, "__wrapped__", None)
    if inspect.iscoroutinefunction(inner):
        owner = getattr(inner, "__self__", None)
        if owner is None:
            owner = getattr(function, "__self__", None)
            args = (owner, *args)
        loop = getattr(owner, "loop", None)
        if loop is not None and loop.is_running():
            return asyncio.run_coroutine_threadsafe(inner(*args, **kwargs), loop)
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    work = (future, function, args, kwargs)
    threading.Thread(target=_run, args=work, name="storage", daemon=True).start()
    return future


def _run(future: Future[T], function: Callable[..., T], args: Any, kwargs: Any) -> None:
    try:
        future.set_result(function(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - the one who waits must see it
        future.set_exception(error)
