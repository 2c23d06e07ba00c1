"""The work queue: order, retries, and failed shards that go only to an idle worker."""

from __future__ import annotations

from latentcache.core.records import ShardId
from latentcache.running.events import GaveUp, Retried, Task
from latentcache.running.queue import WorkQueue


def tasks(count: int) -> list[Task]:
    return [Task(shard=ShardId("b", index)) for index in range(count)]


def test_tasks_come_in_order_and_end() -> None:
    work = WorkQueue(tasks(3), max_retries=1)
    taken = [work.take(alone=True) for _ in range(4)]
    assert [task.shard.number if task else None for task in taken] == [0, 1, 2, None]
    assert len(work) == 0


def test_a_failed_task_goes_only_to_a_worker_without_another() -> None:
    work = WorkQueue(tasks(2), max_retries=1)
    first = work.take(alone=True)
    assert first is not None
    assert work.failed(first, "boom") == Retried(task=first)
    assert (first.attempts, first.error) == (1, "boom")
    busy = work.take(alone=False)
    assert busy is not None
    assert busy.shard.number == 1
    assert work.take(alone=False) is None
    assert len(work) == 1
    assert work.take(alone=True) is first


def test_retries_are_bounded() -> None:
    work = WorkQueue(tasks(1), max_retries=2)
    outcomes = []
    while (task := work.take(alone=True)) is not None:
        outcomes.append(type(work.failed(task, "boom")))
    assert outcomes == [Retried, Retried, GaveUp]


def test_a_jump_changes_the_place_and_loses_no_task() -> None:
    work = WorkQueue(tasks(50), max_retries=1)
    starts = set()
    for _ in range(10):
        work.jump()
        task = work.take(alone=True)
        assert task is not None
        starts.add(task.shard.number)
    rest = [task.shard.number for task in iter(lambda: work.take(alone=True), None)]
    assert sorted([*starts, *rest]) == list(range(50))
    assert starts != set(range(10))
    work.jump()
