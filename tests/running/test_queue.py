"""The work queue: order, retries, and failed shards that go only to an idle worker."""

from __future__ import annotations

import pytest

from latentcache.core.records import ShardId, ShardReport
from latentcache.errors import MachineError
from latentcache.running.attempt import Failed
from latentcache.running.events import GaveUp, Retried, Task
from latentcache.running.queue import DISPROVED, MAX_LOST, MAX_WAITING, WorkQueue


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


def test_a_task_comes_back_to_its_worker_only_if_all_that_are_up_have_tried_it() -> None:
    work = WorkQueue(tasks(1), max_retries=5)
    task = work.take(alone=True, worker=0, up={0, 1})
    assert task is not None
    work.failed(task, "boom", 0)
    assert work.take(alone=True, worker=0, up={0, 1}) is None
    assert len(work) == 1
    assert work.take(alone=True, worker=1, up={0, 1}) is task
    work.lost(task, "gone", 1)
    assert work.take(alone=True, worker=0, up={0, 1, 2}) is None
    assert work.take(alone=True, worker=0, up={0, 1}) is task
    work.failed(task, "boom", 0)
    assert work.take(alone=True, worker=0, up={0}) is task


def test_a_sick_worker_uses_up_neither_retries_nor_the_queue() -> None:
    """It fails at once, so it is always the idle one."""
    work = WorkQueue(tasks(10), max_retries=3)
    events = []
    while (task := work.take(alone=True, worker=0, up={0, 1})) is not None:
        events.append(type(work.settle(task, Failed(error="ill"), "w0", 0)))
    assert events == [Retried] * MAX_WAITING
    assert work.take(alone=False, worker=1, up={0, 1}) is None
    other = work.take(alone=True, worker=1, up={0, 1})
    assert other is not None
    assert other.attempts == 1
    fresh = work.take(alone=False, worker=2, up={0, 1})
    assert fresh is not None
    assert fresh.attempts == 0


def test_what_is_lost_with_its_worker_has_not_failed_and_is_tried_alone() -> None:
    work = WorkQueue(tasks(1), max_retries=0)
    for number in range(MAX_LOST):
        task = work.take(alone=True)
        assert task is not None
        assert work.lost(task, "its node has died") == Retried(task=task)
        assert (task.attempts, task.failed_on) == (number + 1, ())
        assert work.take(alone=False) is None
    task = work.take(alone=True)
    assert task is not None
    with pytest.raises(MachineError, match=r"b/0 lost its worker 6 times.* its node has died\. So"):
        work.lost(task, "its node has died")


def test_a_process_that_dies_may_have_died_of_the_one_shard_that_it_had() -> None:
    work = WorkQueue(tasks(2), max_retries=0)
    both = [task for _ in range(2) if (task := work.take(alone=True))]
    assert work.died(both, "killed") == [Retried(task=task) for task in both]
    first = work.take(alone=True)
    assert first is not None
    assert work.died([first], "killed") == [GaveUp(task=first)]


def test_a_process_that_dies_with_several_shards_holds_nobody_up() -> None:
    work = WorkQueue(tasks(100), max_retries=3)
    in_hand = [task for _ in range(MAX_WAITING) if (task := work.take(alone=True, worker=0))]
    work.died(in_hand, "killed", 0)
    fresh = work.take(alone=False, worker=1, up={0, 1})
    assert fresh is not None
    assert fresh.attempts == 0
    again = [work.take(alone=True, worker=0, up={0, 1}) for _ in range(MAX_WAITING + 1)]
    assert [task.attempts if task else None for task in again] == [*[1] * MAX_WAITING, 0]


def test_what_is_lost_with_an_unfit_worker_goes_to_others_and_it_takes_fresh_ones() -> None:
    work = WorkQueue(tasks(100), max_retries=3)
    for task in [work.take(alone=True, worker=0) for _ in range(MAX_WAITING)]:
        assert task is not None
        work.lost(task, "made no progress", 0)
    fresh = work.take(alone=True, worker=0, up={0, 1})
    assert fresh is not None
    assert fresh.attempts == 0
    other = work.take(alone=True, worker=1, up={0, 1})
    assert other is not None
    assert other.lost_on == (0,)


def test_what_others_failed_does_not_hold_up_a_worker_that_lost_it() -> None:
    work = WorkQueue(tasks(100), max_retries=3)
    for task in [work.take(alone=True, worker=0) for _ in range(MAX_WAITING)]:
        assert task is not None
        task.lost_on = (1,)
        work.failed(task, "odd", 0)
    assert work.take(alone=True, worker=0, up={0, 1, 2}) is None
    assert work.take(alone=False, worker=2, up={0, 1, 2}) is None
    fresh = work.take(alone=True, worker=1, up={0, 1, 2})
    assert fresh is not None
    assert fresh.attempts == 0


def test_a_sick_worker_is_found_out_long_before_the_queue_ends() -> None:
    """Workers that always have something in hand would never come to what it failed."""
    work, up = WorkQueue(tasks(1000), max_retries=3), {0, 1}
    in_hand: list[Task] = []
    for _ in range(100):
        while len(in_hand) < MAX_WAITING and not any(task.attempts for task in in_hand):
            more = work.take(alone=not in_hand, worker=1, up=up)
            if more is None:
                break
            in_hand.append(more)
        while task := work.take(alone=True, worker=0, up=up):
            work.failed(task, "ill", 0)
        work.settle(in_hand.pop(0), report(0), "w1", 1)
    assert work.why_unfit(0)


def report(number: int, **facts: bool) -> ShardReport:
    counts = dict.fromkeys(
        ("num_clips", "num_ok", "num_frames", "stored_bytes", "table_bytes", "raw_bytes"), 1
    )
    return ShardReport(bucket="b", shard=number, **counts, **facts)


def test_a_worker_that_fails_what_others_do_is_unfit_and_no_shard_is_to_blame() -> None:
    work = WorkQueue(tasks(DISPROVED + 3), max_retries=DISPROVED)
    in_hand = [work.take(alone=True, worker=0, up={0, 1}) for _ in range(DISPROVED + 2)]
    for task in filter(None, in_hand):
        work.failed(task, "odd", 0)
    for number in range(DISPROVED):
        assert work.why_unfit(0) is None
        done = work.take(alone=True, worker=1, up={0, 1})
        assert done is not None
        work.settle(done, report(number), "w1", 1)
    assert work.why_unfit(0) == "it failed one shard after the other that others could do"
    held = work.take(alone=True, worker=1, up={0, 1})
    assert held is not None
    work.forget(0)
    assert work.why_unfit(0) is None
    assert held.attempts == 0
    rest = [task for _ in range(2) if (task := work.take(alone=False, worker=0, up={0, 1}))]
    assert [task.attempts for task in rest] == [0, 0]


def test_a_worker_that_does_shards_meanwhile_or_whose_shards_were_committed_is_fit() -> None:
    work = WorkQueue(tasks(40), max_retries=9)
    for number in range(2 * DISPROVED):
        task = work.take(alone=True, worker=0, up={0, 1})
        assert task is not None
        work.failed(task, "odd", 0)
        task = work.take(alone=True, worker=1, up={0, 1})
        assert task is not None
        work.settle(task, report(number, committed_before=number % 2 == 0), "w1", 1)
        if number % 3 == 2:
            own = work.take(alone=False, worker=0, up={0, 1})
            assert own is not None
            work.settle(own, report(20 + number), "w0", 0)
        assert work.why_unfit(0) is None


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
