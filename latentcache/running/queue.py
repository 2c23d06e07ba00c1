"""What a runner works off: tasks, their retries, and the events that it yields. No I/O."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from latentcache.core.records import ShardId, ShardReport
from latentcache.errors import MachineError
from latentcache.running.attempt import Failed
from latentcache.running.events import (
    GaveUp,
    Retried,
    Task,
)

#: Reads what a worker needs of a shard: its clips, or what a field encodes of them.
LoadShard = Callable[[ShardId], Any]

#: A shard may be lost with its worker so many times. More is no accident any more, and no evidence against
#: the shard either, so that the run stops.
MAX_LOST = 5
#: A worker is unfit once others have done so many shards that it had failed, while it has done none.
DISPROVED = 3
#: While so many tasks that failed wait to be tried again, no fresh one is taken by whoever failed them, or
#: could try them: a sick worker would fail the whole queue before others have done enough of it to tell.
MAX_WAITING = DISPROVED


class WorkQueue:
    """Tasks in order; those that were not done come back, to be tried alone.

    A task that failed comes back until its retries are used up. One that was lost with its worker has not
    failed: it comes back until the run stops.
    """

    def __init__(self, tasks: Iterable[Task], *, max_retries: int) -> None:
        self._fresh = deque(tasks)
        self._tried: deque[Task] = deque()
        self._max_retries = max_retries
        self._blamed: list[Task] = []
        self._disproved: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._tried)

    def take(self, *, alone: bool, worker: int = 0, up: Collection[int] = ()) -> Task | None:
        """Return the next task; one that has been tried before only to a worker that has no other.

        A shard that kills its worker takes the worker's other shards with it: alone, it harms none. It
        goes to a worker that has not tried it, while such a one is up: a sick worker fails at once, so
        that it is always the idle one, and would use up the retries of whatever it gets.

        None: there is none for this worker, for now.
        """
        task = self._next_tried(worker, up) if alone else None
        if task is not None:
            self._tried.remove(task)
            return task
        if not self._fresh or self._num_held_up_by(worker) >= MAX_WAITING:
            return None
        return self._fresh.popleft()

    def _num_held_up_by(self, worker: int) -> int:
        """Return how many tasks that failed wait for a worker, or wait because it failed them."""
        return sum(
            worker in task.failed_on or worker not in task.tried_on
            for task in self._tried
            if task.failed_on
        )

    def _next_tried(self, worker: int, up: Collection[int]) -> Task | None:
        for task in self._tried:
            if worker not in task.tried_on or task.tried_on.issuperset(up):
                return task
        return None

    def jump(self) -> None:
        """Go on at a random place, for another run may be working on the same cache at this one."""
        if self._fresh:
            self._fresh.rotate(-random.randrange(len(self._fresh)))  # noqa: S311 - not for secrets

    def give_back(self, task: Task) -> None:
        """Put a task back as it was taken: its worker was told to end."""
        (self._tried if task.attempts else self._fresh).appendleft(task)

    def settle(
        self, task: Task, outcome: ShardReport | Failed, name: str, worker: int = 0
    ) -> ShardReport | Retried | GaveUp:
        """Return what became of an attempt at a task. Raises what stops the run. name: the worker's."""
        if not isinstance(outcome, Failed):
            self._note_done(task, outcome, worker)
            return replace(outcome, worker=name)
        if outcome.stop is not None:
            raise outcome.stop
        return self.failed(task, outcome.error, worker)

    def _note_done(self, task: Task, report: ShardReport, worker: int) -> None:
        if not report.committed_before:
            self._disproved.pop(worker, None)
            self._disproved.update({*task.failed_on} - {worker})

    def why_unfit(self, worker: int) -> str | None:
        """Return why a worker is unfit, None if it is not: it fails what others can do."""
        is_unfit = self._disproved[worker] >= DISPROVED
        return "it failed one shard after the other that others could do" if is_unfit else None

    def forget(self, worker: int) -> None:
        """Take back what failed on a worker that turned out to be unfit: no shard was to blame."""
        self._disproved.pop(worker, None)
        for task in self._blamed:
            task.failed_on = tuple(other for other in task.failed_on if other != worker)
        self._blamed = [task for task in self._blamed if task.failed_on]
        waiting, self._tried = self._tried, deque()
        for task in waiting:
            (self._tried if task.attempts else self._fresh).append(task)

    def failed(self, task: Task, error: str, worker: int = 0) -> Retried | GaveUp:
        """Put a failed task back, or give it up."""
        task.failed_on += (worker,)
        task.error = error
        self._blamed.append(task)
        if len(task.failed_on) > self._max_retries:
            return GaveUp(task=task)
        self._tried.append(task)
        return Retried(task=task)

    def lost(self, task: Task, error: str, worker: int | None = 0) -> Retried:
        """Put a task back whose worker was lost: that is no failure of the task's.

        worker: None if a new process in the worker's place may well do it. Raises MachineError where that
        happens to it again and again.
        """
        task.lost_on += (worker,)
        task.error = error
        if len(task.lost_on) > MAX_LOST:
            raise MachineError(
                f"shard {task.shard.name} lost its worker {len(task.lost_on)} times, the last time so: "
                f"{error}. So the run was stopped, and the shard is not recorded as failed; what is "
                "committed stays. If machines come and go, make shards smaller (cache.shard_clips). If it "
                "is always this shard, see what its clips do to the encoder. Then resume."
            )
        self._tried.append(task)
        return Retried(task=task)

    def died(self, tasks: Sequence[Task], error: str, worker: int = 0) -> list[Retried | GaveUp]:
        """Put back what a worker had in hand whose process died, while its machine goes on.

        Of a shard that it had by itself it may have died, so that is a failure. Of several, nobody knows
        which: each is tried alone, also by the process that replaces it.
        """
        if len(tasks) == 1:
            return [self.failed(tasks[0], error, worker)]
        return [self.lost(task, error, None) for task in tasks]
