"""A worker that starts: loading a model takes as long as it takes, unless nothing of it advances."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from latentcache.core.threads import DaemonPool
from latentcache.running.attempt import Failed, attempt
from latentcache.running.stall import Watch
from latentcache.running.worker import Worker

_STEP_BYTES = 1 << 20
_COUNTED = ("rchar", "wchar", "read_bytes")


class Start:
    """Starts a worker in a thread of its own: what hangs there is left behind."""

    def __init__(self, start: Callable[[], Worker], watch: Watch) -> None:
        self._watch = watch
        self._pool = DaemonPool(1, name="start", initializer=self._remember)
        self._thread: int | None = None
        self._future = self._pool.submit(partial(attempt, start, starting=True))
        self._future.add_done_callback(lambda _: self._pool.cancel())

    def _remember(self) -> None:
        self._thread = threading.get_ident()

    def wait(self, timeout_s: float) -> Worker | Failed | None:
        """Wait for so long; return the worker, or why there is none, or None where it goes on starting."""
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

    def result(self) -> Worker | Failed:
        """Wait until the worker is up, or stands still."""
        while (found := self.wait(1.0)) is None:
            pass
        return found

    def _num_steps(self) -> int:
        """Count MiB that the process has read or written, and seconds that the thread has computed."""
        return _num_bytes() // _STEP_BYTES + int(_cpu_s(self._thread))


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
