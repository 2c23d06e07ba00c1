"""A run's log on its way to the cache's `logs/`: written every few seconds, and when the run ends."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from latentcache.core.machine import versions
from latentcache.errors import LatentCacheError, LeaseError, StorageError, UnreachableError
from latentcache.running import log_lines
from latentcache.running.events import Event, Progress
from latentcache.running.log_lines import LogEvent
from latentcache.running.speed import Pace, clips_per_s, time_left
from latentcache.storage.folder import Storage

log = logging.getLogger(__name__)

#: After these an end is not logged: it would wait as long once more, or write to another run's cache.
NOT_WRITABLE = (UnreachableError, LeaseError)
#: Segments that are kept for a store that refuses them; the oldest are lost first.
MAX_UNWRITTEN = 16


class RunLog:
    """One run's log, in numbered segments. A write that fails is said once, tried again, and fails nothing.

    But where the lease is lost, LeaseError is raised: the run has to stop.

    options: storage options, whose secrets never reach the log.
    """

    def __init__(self, storage: Storage, options: Mapping[str, Any]) -> None:
        self.name = log_lines.run_name(time.time(), secrets.token_hex(3))
        self._storage = storage
        self._options = options
        self._number = 0
        self._segment = bytearray()
        #: Segments by number, in their order, whose last write failed or is still to come.
        self._unwritten: dict[int, bytes] = {}
        self._progress: Progress | None = None
        self._pace = Pace(time.monotonic())
        self._num_clips = 0
        self._began_at = self._flushed_at = time.monotonic()
        self._has_failed = False

    @contextmanager
    def run(self, **facts: Any) -> Iterator[None]:
        """Log the beginning of a run with these facts, and how it ends."""
        log.info("run %s logs to %s", self.name, log_lines.LOGS)
        self._num_clips = facts.get("num_clips", 0)
        self.add(log_lines.RUN_STARTED, versions=versions(), **facts)
        self._flush()
        try:
            yield
        except BaseException as error:
            self._end(**_how_it_ended(error))
            if not isinstance(error, NOT_WRITABLE):
                self._flush()
            raise
        self._end(how=log_lines.FINISHED)
        self._flush()

    def take(self, event: Event) -> None:
        """Log an event of the run. Of progress only the last one before a write is logged."""
        for name, facts in log_lines.describe(event):
            self.add(name, **facts)
            log.info("%s %s", name, facts)
        if isinstance(event, Progress):
            self._progress = event
            self._pace.add(time.monotonic(), event.clips_done)
            for text in event.warnings:
                self.add(log_lines.WARNING, text=text)
        now = time.monotonic()
        if now - self._flushed_at > log_lines.flush_interval(now - self._began_at):
            self._add_progress()
            self._flush()

    def add(self, name: str, **facts: Any) -> None:
        """Log something; it is written with the rest, later."""
        clean = log_lines.without_secrets(facts, self._options)
        self._segment += LogEvent(time_s=time.time(), name=name, facts=clean).to_line()

    def _end(self, **facts: Any) -> None:
        self._add_progress()
        self.add(log_lines.RUN_ENDED, **facts)

    def _add_progress(self) -> None:
        """Log a heartbeat, with the speed and the time left as the bar and `status` have them."""
        facts = asdict(self._progress) if self._progress is not None else {}
        facts.pop("warnings", None)
        speed = clips_per_s([self._pace])
        left_s = time_left(max(0, self._num_clips - facts.get("clips_done", 0)), speed)
        facts |= {"clips_per_s": round(speed, 6), "left_s": left_s and round(left_s, 3)}
        self.add(log_lines.PROGRESS, **facts)

    def _flush(self) -> None:
        """Write what is not written yet; what a store refuses is tried again at the next write."""
        self._unwritten[self._number] = bytes(self._segment)
        try:
            for number in list(self._unwritten):
                self._write(number)
        except LeaseError:
            raise
        except StorageError as error:
            self._warn(error)
        if len(self._segment) > log_lines.SEGMENT_BYTES:
            self._number += 1
            self._segment.clear()
        if len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[min(self._unwritten)]
        self._flushed_at = time.monotonic()

    def _write(self, number: int) -> None:
        path = log_lines.segment_path(self.name, number)
        self._storage.write(path, self._unwritten[number])
        del self._unwritten[number]

    def _warn(self, error: StorageError) -> None:
        if not self._has_failed:
            log.warning("the run goes on, and its log is not written: %s", error)
        self._has_failed = True


def _how_it_ended(error: BaseException) -> dict[str, str]:
    """Return the facts of an end before the work was done; closing a run's iterator is an interrupt."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return {"how": log_lines.INTERRUPTED}
    name = type(error).__name__
    # Of errors that nobody foresaw the text may hold anything.
    message = f"{name}: {error}" if isinstance(error, LatentCacheError) else name
    return {"how": log_lines.STOPPED, "message": message}
