"""Threads that may hang: those of DaemonPool never keep the process from ending, as other pools' do."""

from __future__ import annotations

import atexit
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

#: The name of threads that join a Ray cluster: where one hangs, it is in native code.
JOINING_RAY = "ray-joining"
#: What is let go of waits so long for calls that are under way; the interpreter, when it ends.
CLOSE_S = 5.0
EXIT_S = 2.0


class DaemonPool:
    """Runs calls in at most `num_threads` threads, in the order in which they are submitted.

    initializer: called first in each thread.
    """

    def __init__(
        self, num_threads: int, *, name: str, initializer: Callable[[], object] = lambda: None
    ) -> None:
        self._num_threads, self._name, self._initializer = num_threads, name, initializer
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_closed = False
        _POOLS.add(self)

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call a function as soon as a thread is free."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the pool is closed")
            self._calls.put((future, functools.partial(function, *args)))
            if len(self._threads) < self._num_threads:
                name = f"{self._name}_{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _run(self) -> None:
        self._initializer()
        while (work := self._calls.get()) is not None:
            future, call = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - the one who waits must see it
                future.set_exception(error)
            del (
                work,
                future,
                call,
            )  # what they hold is large, and the next call may be long in coming

    def close(self, wait_s: float | None = CLOSE_S) -> bool:
        """Cancel what has not begun, and wait for the rest; returns whether all threads have ended.

        wait_s: None: for as long as it takes.
        """
        self.cancel()
        ends_s = None if wait_s is None else time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(None if ends_s is None else max(0.0, ends_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def cancel(self) -> None:
        """Cancel what has not begun, and let the threads end after what they are at."""
        with self._lock:
            self._is_closed = True
            while not self._calls.empty():
                if (work := self._calls.get()) is not None:
                    work[0].cancel()
            for _ in self._threads:
                self._calls.put(None)


_POOLS: weakref.WeakSet[DaemonPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Let threads end what they are at: native code may abort where the interpreter ends under it."""
    pools = list(_POOLS)
    for pool in pools:
        pool.cancel()
    ends_s = time.monotonic() + EXIT_S
    for pool in pools:
        pool.close(max(0.0, ends_s - time.monotonic()))
