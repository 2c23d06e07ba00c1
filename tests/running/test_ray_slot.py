"""Places for workers on Ray: one is left once new processes do not help, and forgiven once one works."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from latentcache.core.records import ShardId, ShardReport
from latentcache.errors import MachineError
from latentcache.running import stall
from latentcache.running.attempt import Failed
from latentcache.running.events import Task
from latentcache.running.queue import WorkQueue
from latentcache.running.runners import ray as runner
from latentcache.running.runners.ray_slot import Slot

MAX_TRIES = 3


class Runner(runner._Runner):  # type: ignore[misc]
    """A runner without a cluster: workers start at once."""

    def __init__(self, num_places: int) -> None:
        tasks = [Task(shard=ShardId("b", number)) for number in range(100)]
        self._work = WorkQueue(tasks, max_retries=MAX_TRIES - 1)
        self._max_tries = MAX_TRIES
        self._warnings = ()
        self._clips_before = 0
        watches = [stall.Watch(600.0) for _ in range(num_places)]
        self._slots = [Slot(number=n, watch=watch) for n, watch in enumerate(watches)]
        for slot in self._slots:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        slot.actor = SimpleNamespace(close=SimpleNamespace(remote=lambda: None))
        slot.name, slot.is_up, slot.is_leaving = f"w{slot.number}", True, False

    def take(self, slot: Slot) -> Task:
        task = self._work.take(alone=True, worker=slot.number, up={0, 1})
        assert task is not None
        return task

    def stall(self) -> None:
        """Let every worker stand still, with a shard in hand."""
        for slot in self._slots:
            slot.in_hand = {object(): self.take(slot)}
            list(self._replace_unfit(slot, slot.watch.why))

    def settle(self, outcome: Any) -> None:
        for slot in self._slots:
            list(self._settle_outcome(slot, object(), self.take(slot), outcome))


def report(*, committed_before: bool) -> ShardReport:
    counts = dict.fromkeys(
        ("num_clips", "num_ok", "num_frames", "stored_bytes", "table_bytes", "raw_bytes"), 1
    )
    return ShardReport(bucket="b", shard=0, committed_before=committed_before, **counts)


@pytest.fixture(autouse=True)
def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ray", SimpleNamespace(kill=lambda _: None))


def test_workers_that_encode_shards_between_their_stalls_keep_their_places() -> None:
    run = Runner(2)
    for _ in range(2 * MAX_TRIES):
        run.stall()
        run.settle(report(committed_before=False))
    assert not any(slot.is_retired for slot in run._slots)
    assert [slot.num_unfit for slot in run._slots] == [0, 0]


@pytest.mark.parametrize("outcome", [report(committed_before=True), Failed(error="odd")])
def test_what_takes_no_encoding_forgives_no_place(outcome: Any) -> None:
    run = Runner(1)
    run.stall()
    run.settle(outcome)
    assert run._slots[0].num_unfit == 1


def test_a_run_that_no_stalled_worker_gets_on_with_ends_and_says_that_they_stalled() -> None:
    run = Runner(2)
    for _ in range(MAX_TRIES - 1):
        run.stall()
    with pytest.raises(MachineError, match="made no progress for 600 s") as caught:
        run.stall()
    assert "Xid" not in str(caught.value)


def test_a_sick_gpu_ends_the_run_with_what_to_look_at() -> None:
    run = Runner(1)
    run._slots[0].num_unfit = MAX_TRIES - 1
    sick = Failed(error="CUDA error: gone", is_unfit=True)
    with pytest.raises(MachineError, match=r"CUDA error: gone.*Xid"):
        run.settle(sick)


def test_a_worker_that_left_starts_elsewhere_without_its_past() -> None:
    run = Runner(1)
    run.stall()
    run._slots[0].is_leaving = True
    list(run._let_go(run._slots[0]))
    assert [(slot.is_up, slot.num_unfit) for slot in run._slots] == [(True, 0)]
