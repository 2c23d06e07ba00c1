"""Reading ahead: threads read batches in parts; they are handed out in order, bounded in bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """A batch to read: independent parts, then what makes the batch of them. Called by threads."""

    @property
    def num_bytes(self) -> int:
        """Memory that the batch takes until it is handed out."""
        ...

    def parts(self) -> Sequence[Callable[[], None]]:
        """Return what is to be done, at least one part; called once, when there is room."""
        ...

    def finish(self) -> T_co:
        """Return the batch; called once, after every part."""
        ...


@dataclass
class Waiting:
    """Seconds that the consumer waited for batches."""

    wait_s: float = 0.0


class _Pending(Generic[T]):
    """A job that is under way; `result` ends with the batch or with the first part's exception."""

    def __init__(self, job: Job[T]) -> None:
        self.result: Future[T] = Future()
        self.num_bytes = job.num_bytes
        self._job = job
        self._lock = threading.Lock()
        self._left = 0

    def submit(self, pool: ThreadPoolExecutor) -> None:
        parts = self._job.parts()
        self._left = len(parts)
        for part in parts:
            pool.submit(self._run, part)

    def _run(self, part: Callable[[], None]) -> None:
        if self.result.done():  # another part failed: the batch is lost
            return
        try:
            part()
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                self.result.set_result(self._job.finish())
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            with self._lock:
                if not self.result.done():
                    self.result.set_exception(error)


def read_ahead(
    jobs: Iterator[Job[T]], *, num_threads: int, max_bytes: int, waiting: Waiting
) -> Iterator[T]:
    """Yield the batches of `jobs` in order, while the next ones are read.

    At most `max_bytes` of batches are under way or ready, or one. An exception of a job is raised
    when its turn comes. When the iterator is closed, or let go, its threads end with the parts that
    they are in.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="latentcache-read")
    pending: deque[_Pending[T]] = deque()
    held, upcoming = 0, next(jobs, None)
    try:
        while upcoming is not None or pending:
            while upcoming and (not pending or held + upcoming.num_bytes <= max_bytes):
                entry = _Pending(upcoming)
                entry.submit(pool)
                pending.append(entry)
                held += entry.num_bytes
                upcoming = next(jobs, None)
            entry = pending.popleft()
            started = time.perf_counter()
            try:
                batch = entry.result.result()
            finally:
                waiting.wait_s += time.perf_counter() - started
            held -= entry.num_bytes
            del entry
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
