"""Fetching ahead: processes that put what clips need into the cache of sources, while others decode."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from latentcache.decoders.child import Child
from latentcache.decoders.trouble import ProcessTroubleError
from latentcache.errors import ClipError, RunStoppedError, ShardError

#: Clips that are fetched before any process has time to decode them, for each of those processes.
CLIPS_AHEAD = 3
#: More would share the same line, and take memory.
MAX_FETCHERS = 4
#: What a fetch can raise. Whoever decodes the clip meets it too, and says what it means.
_FAILURES: tuple[type[Exception], ...] = (
    ClipError, ProcessTroubleError, ShardError, RunStoppedError, OSError,
)  # fmt: skip


def num_fetchers(num_processes: int) -> int:
    """Return how many processes fetch for so many that decode."""
    return min(MAX_FETCHERS, num_processes)


class Ahead:
    """What one clip will need: fetched, or not yet. fetch_s: seconds that it took, when it is done."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.message = message
        self.fetch_s = 0.0
        self.is_taken = self.is_begun = False


class Fetchers:
    """Fetches for clips in their order, at most `num_ahead` before those that are being decoded."""

    def __init__(self, processes: list[Child], num_ahead: int, timeout_s: float) -> None:
        self.processes = processes
        self._num_left, self._timeout_s = num_ahead, timeout_s
        self._waiting: deque[Ahead] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._lanes = [
            threading.Thread(target=self._serve, args=(process,), name="fetch", daemon=True)
            for process in processes
        ]
        for lane in self._lanes:
            lane.start()

    def add(self, message: Mapping[str, Any]) -> Ahead:
        """Fetch what a request to decode will need, in its turn."""
        ahead = Ahead({**message, "op": "fetch"})
        with self._changed:
            self._waiting.append(ahead)
            self._changed.notify()
        return ahead

    def begin(self, ahead: Ahead) -> None:
        """Say that a clip is being decoded: nobody needs to begin to fetch for it."""
        with self._changed:
            ahead.is_begun = True
            self._num_left += ahead.is_taken
            self._changed.notify()

    def close(self) -> None:
        """Stop the processes at once."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for process in self.processes:
            process.stop()
        for lane in self._lanes:
            lane.join()

    def _serve(self, process: Child) -> None:
        try:
            while (ahead := self._next()) is not None:
                with contextlib.suppress(*_FAILURES):
                    ahead.fetch_s = process.ask(ahead.message, self._timeout_s)["fetch_s"]
        finally:
            process.close()

    def _next(self) -> Ahead | None:
        with self._changed:
            while True:
                self._changed.wait_for(
                    lambda: self._is_closing or (self._waiting and self._num_left > 0)
                )
                if self._is_closing:
                    return None
                ahead = self._waiting.popleft()
                if not ahead.is_begun:
                    ahead.is_taken = True
                    self._num_left -= 1
                    return ahead
