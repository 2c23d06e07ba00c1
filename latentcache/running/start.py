"""A model that is loaded: it takes as long as it takes, unless nothing of it advances."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from latentcache.config.sections import RunConfig
from latentcache.core.threads import DaemonPool
from latentcache.errors import EncoderError
from latentcache.running.attempt import Failed, attempt
from latentcache.running.stall import LEAST_S, Watch

T = TypeVar("T")

_STEP_BYTES = 1 << 20
_COUNTED = ("rchar", "wchar", "read_bytes")


class Start(Generic[T]):
    """Starts a worker, or loads a model, in a thread of its own: what hangs there is left behind.

    error: what was raised there.
    """

    def __init__(self, start: Callable[[], T], watch: Watch) -> None:
        self._start, self._watch = start, watch
        self._pool = DaemonPool(1, name="start", initializer=self._remember)
        self._thread: int | None = None
        self.error: BaseException | None = None
        self._future = self._pool.submit(partial(attempt, self._noted, starting=True))
        self._future.add_done_callback(lambda _: self._pool.cancel())

    def _noted(self) -> T:
        try:
            return self._start()
        except BaseException as error:
            self.error = error
            raise

    def _remember(self) -> None:
        self._thread = threading.get_ident()

    def wait(self, timeout_s: float) -> T | Failed | None:
        """Wait for so long; return what was started, or why it failed; None: it goes on starting."""
        try:
            return self._future.result(timeout_s)
        except TimeoutError:
            if not self._watch.stands_still(self._num_steps()):
                return None
        return Failed(
            error=f"loading the model made no progress for {self._watch.limit_s:.0f} s (run.stall_s): it "
            "read and wrote nothing and computed nothing. See what it waits for: a mount, a download, the "
            "GPU. If it only is slow, give run.stall_s more seconds"
        )

    def result(self) -> T | Failed:
        """Wait until it is up, or stands still."""
        while (found := self.wait(1.0)) is None:
            pass
        return found

    def leave(self, end: Callable[[T], object]) -> None:
        """Wait no longer: what comes up later is handed to `end`, for nobody else will end it."""
        self._future.add_done_callback(lambda future: _end(future.result(), end))

    def _num_steps(self) -> int:
        """Count MiB that the process has read or written, and seconds that the thread has computed."""
        return _num_bytes() // _STEP_BYTES + int(_cpu_s(self._thread))


def _end(found: T | Failed, end: Callable[[T], object]) -> None:
    if not isinstance(found, Failed):
        end(found)


def loaded(load: Callable[[], T], run: RunConfig) -> T:
    """Return what `load` returns, for jobs that have no runner.

    Raises what it raises, and EncoderError where it stands still for `run.stall_s`.
    """
    is_auto = run.stall_s == "auto"
    start = Start(load, Watch(LEAST_S if run.stall_s == "auto" else run.stall_s, adapts=is_auto))
    found = start.result()
    if isinstance(found, Failed):
        raise start.error or EncoderError(found.error)
    return found


def _num_bytes() -> int:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:  # no Linux
        return 0
    counts = dict(line.split(": ") for line in lines)
    return sum(int(counts.get(name, 0)) for name in _COUNTED)


def _cpu_s(thread: int | None) -> float:
    """Return the CPU time of a thread; of the whole process where the system does not tell."""
    if thread is None or not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time()
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except OSError:  # it has just ended
        return 0.0
