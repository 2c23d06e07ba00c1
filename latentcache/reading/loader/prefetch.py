"""Reading ahead: threads read batches in parts; they are handed out in order, bounded in bytes."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from latentcache.core.threads import DaemonPool

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

log = logging.getLogger(__name__)

#: A part that takes longer is named in a warning, and again each time it has taken twice as long.
SLOW_S = 30.0


class Job(Protocol[T_co]):
    """A batch to read: independent parts, then the step that joins them. Called by threads."""

    @property
    def num_bytes(self) -> int:
        """Memory that the batch takes until it is handed out."""
        ...

    def parts(self) -> Sequence[Callable[[], None]]:
        """Return what is to be done, at least one part; called once, when there is room.

        A part that hangs is named by its `str`.
        """
        ...

    def finish(self) -> T_co:
        """Return the batch; called once, after every part."""
        ...


@dataclass
class Waiting:
    """Seconds that the consumer waited for batches."""

    wait_s: float = 0.0


class _Pending(Generic[T]):
    """A job in progress; `result` ends with the batch or with the first part's exception."""

    def __init__(self, job: Job[T]) -> None:
        self.result: Future[T] = Future()
        self.num_bytes = job.num_bytes
        self._job = job
        self._lock = threading.Lock()
        self._parts: deque[Callable[[], None]] = deque()
        self._left = 0
        self._running: dict[int, tuple[float, Callable[[], None]]] = {}  # since when, by thread
        self._warned_s = SLOW_S

    def wait(self) -> T:
        """Return the batch; a part that is read for very long is named in a warning meanwhile."""
        while not wait([self.result], timeout=self._warned_s / 2).done:
            self._warn()
        return self.result.result()

    def _warn(self) -> None:
        with self._lock:
            running = list(self._running.values())
        if not running:
            return
        since_s, part = min(running, key=lambda item: item[0])
        if (took_s := time.monotonic() - since_s) >= self._warned_s:
            self._warned_s = 2 * took_s
            log.warning(
                "reading %s has taken %.0f s so far, and the next batch waits for it. The storage may "
                "hang; Ctrl-C ends the wait.",
                part,
                took_s,
            )

    def submit(self, pool: DaemonPool, num_threads: int) -> None:
        """Let as many threads as are useful take the parts, one after the other."""
        self._parts.extend(self._job.parts())
        self._left = len(self._parts)
        for _ in range(min(num_threads, self._left)):
            pool.submit(self._run)

    def _run(self) -> None:
        try:
            while (part := self._next()) is not None:
                part()
                with self._lock:
                    del self._running[threading.get_ident()]
                    self._left -= 1
                    last = self._left == 0
                if last:
                    self.result.set_result(self._job.finish())
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            with self._lock:
                if not self.result.done():
                    self.result.set_exception(error)

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if not self._parts or self.result.done():  # done: a part failed, so the batch is lost
                return None
            part = self._parts.popleft()
            self._running[threading.get_ident()] = (time.monotonic(), part)
            return part


def compute_alone(num_threads: int) -> None:
    """Run this thread's torch operations only in this thread, and those of others in `num_threads`.

    Otherwise each reading thread has its own team of threads, as many as the machine has cores, which
    wait for one another in busy loops: ten times the work on a machine that is in use.
    """
    torch.get_num_threads()  # creates this thread's own setting, which later ones do not change
    torch.set_num_threads(1)
    # That also set it for threads to come; a thread that ends at once takes this part back.
    restorer = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
    restorer.start()
    restorer.join()


def read_ahead(
    jobs: Iterator[Job[T]], *, num_threads: int, max_bytes: int, waiting: Waiting
) -> Iterator[T]:
    """Yield the batches of `jobs` in order, while the next ones are being read.

    At most `max_bytes` of batches (or one batch) are in progress or ready. A job's exception is raised
    when its turn comes. When the iterator is closed or dropped, its threads end after their current
    parts, which it waits for; but not for one that hangs, and after an interrupt for none.
    """
    pool = DaemonPool(
        num_threads,
        name="latentcache-read",
        initializer=functools.partial(compute_alone, torch.get_num_threads()),
    )
    pending: deque[_Pending[T]] = deque()
    held, upcoming = 0, next(jobs, None)
    try:
        while upcoming is not None or pending:
            while upcoming and (not pending or held + upcoming.num_bytes <= max_bytes):
                entry = _Pending(upcoming)
                entry.submit(pool, num_threads)
                pending.append(entry)
                held += entry.num_bytes
                upcoming = next(jobs, None)
            entry = pending.popleft()
            started = time.perf_counter()
            try:
                batch = entry.wait()
            finally:
                waiting.wait_s += time.perf_counter() - started
            held -= entry.num_bytes
            del entry
            yield batch
    except KeyboardInterrupt:
        pool.cancel()
        raise
    except BaseException:
        pool.close()
        raise
    pool.close()
