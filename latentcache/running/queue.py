"""What a runner works off: tasks, their retries, and the events that it yields. No I/O."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from latentcache.core.records import ShardId, ShardReport
from latentcache.running.attempt import Failed
from latentcache.running.events import (
    GaveUp,
    Retried,
    Task,
)

#: Reads what a worker needs of a shard: its clips, or what a field encodes of them.
LoadShard = Callable[[ShardId], Any]


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

    def give_back(self, task: Task) -> None:
        """Put a task back as it was taken: its worker was told to end."""
        (self._failed if task.attempts else self._fresh).appendleft(task)

    def settle(
        self, task: Task, outcome: ShardReport | Failed, worker: str
    ) -> ShardReport | Retried | GaveUp:
        """Return what became of an attempt at a task. Raises what stops the run. worker: its name."""
        if not isinstance(outcome, Failed):
            return replace(outcome, worker=worker)
        if outcome.stop is not None:
            raise outcome.stop
        return self.failed(task, outcome.error)

    def failed(self, task: Task, error: str) -> Retried | GaveUp:
        """Put a failed task back, or give it up."""
        task.attempts += 1
        task.error = error
        if task.attempts > self._max_retries:
            return GaveUp(task=task)
        self._failed.append(task)
        return Retried(task=task)
