"""What a runner works off: tasks, their retries, and the events that it yields. No I/O."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from latentcache.core.records import Shard, ShardReport


@dataclass(kw_only=True)
class Task:
    """One shard to encode. attempts: how often it has failed; error: how it failed last."""

    bucket: str
    index: int
    retry_failed: bool = False
    attempts: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        """`bucket/index`, for messages."""
        return f"{self.bucket}/{self.index}"


@dataclass(frozen=True, kw_only=True)
class GaveUp:
    """A shard that failed more often than `max_retries` allows."""

    task: Task


@dataclass(frozen=True, kw_only=True)
class Retried:
    """A shard that failed, and will be tried again."""

    task: Task


@dataclass(frozen=True, kw_only=True)
class Started:
    """A worker is up. name: as `worker_name` gives it; gpus: those that it was assigned."""

    worker: int
    name: str
    gpus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Died:
    """A worker, or the machine it was on, is gone. name: empty where it had not started yet."""

    name: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Clips done since the start of the run, committed or not, and workers that are up.

    shards_in_hand: those that workers are working on. warnings: what workers have logged since the last
    time.
    """

    clips_done: int
    workers: int
    shards_in_hand: int = 0
    warnings: tuple[str, ...] = ()


Event = ShardReport | GaveUp | Retried | Started | Died | Progress

#: Reads the clips of a task's shard.
LoadShard = Callable[[Task], Shard]


def worker_name(host: str, gpus: Sequence[object], number: int) -> str:
    """Return what people know a worker by: `host/gpu3`; `host/worker3` where it has no GPU of its own."""
    return f"{host}/gpu{'+'.join(map(str, gpus))}" if gpus else f"{host}/worker{number}"


class WorkQueue:
    """Tasks in order; failed ones come back, to be tried alone, until their retries are used up."""

    def __init__(self, tasks: Iterable[Task], *, max_retries: int) -> None:
        self._fresh = deque(tasks)
        self._failed: deque[Task] = deque()
        self._max_retries = max_retries

    def __len__(self) -> int:
        return len(self._fresh) + len(self._failed)

    def take(self, *, alone: bool) -> Task | None:
        """Return the next task; one that has failed before only to a worker that has no other.

        A shard that kills its worker takes the worker's other shards with it: alone, it harms none.
        """
        if alone and self._failed:
            return self._failed.popleft()
        return self._fresh.popleft() if self._fresh else None

    def jump(self) -> None:
        """Go on at a random place, for another run may be working on the same cache at this one."""
        if self._fresh:
            self._fresh.rotate(-random.randrange(len(self._fresh)))  # noqa: S311 - not for secrets

    def failed(self, task: Task, error: str) -> Retried | GaveUp:
        """Put a failed task back, or give it up."""
        task.attempts += 1
        task.error = error
        if task.attempts > self._max_retries:
            return GaveUp(task=task)
        self._failed.append(task)
        return Retried(task=task)
