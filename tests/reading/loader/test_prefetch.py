from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from latentcache.reading.loader.prefetch import Waiting, read_ahead


class Job:
    """Gives its name; two parts."""

    num_bytes = 10

    def __init__(self, name: int, log: list[Any], broken: str = "") -> None:
        self.name, self.log, self.broken = name, log, broken

    def parts(self) -> Sequence[Callable[[], None]]:
        self.log.append(("start", self.name))
        return [lambda: None, self.second]

    def second(self) -> None:
        if self.broken == "part":
            raise KeyError(self.name)

    def finish(self) -> int:
        if self.broken == "finish":
            raise IndexError(self.name)
        return self.name


def names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("latentcache-read")]


def start(jobs: Iterator[Job], max_bytes: int = 100) -> Iterator[int]:
    return read_ahead(jobs, num_threads=3, max_bytes=max_bytes, waiting=Waiting())


@pytest.mark.parametrize("max_bytes", [1, 10, 25, 1000])
def test_batches_come_in_order_and_as_many_are_begun_as_fit(max_bytes: int) -> None:
    log: list[Any] = []
    for n, name in enumerate(start((Job(i, log) for i in range(20)), max_bytes)):
        assert n == name
        begun = sum(1 for event in log if event[0] == "start")
        assert begun == min(20, n + max(1, max_bytes // 10))
    assert len(log) == 20
    assert names() == []


@pytest.mark.parametrize(("broken", "error"), [("part", KeyError), ("finish", IndexError)])
def test_an_exception_comes_in_its_turn_and_ends_the_threads(broken: str, error: type) -> None:
    jobs = (Job(i, [], broken if i == 3 else "") for i in range(9))
    batches = start(jobs)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(error, match="3"):
        next(batches)
    assert names() == []


def test_letting_go_ends_the_threads() -> None:
    for name in start(Job(i, []) for i in range(1000)):
        assert name == 0
        assert names()
        break
    assert names() == []


def test_no_jobs_no_batches() -> None:
    assert list(start(iter([]))) == []


def test_waiting_is_counted() -> None:
    gate, waiting = threading.Event(), Waiting()

    class Slow(Job):
        def second(self) -> None:
            gate.wait(10)

    timer = threading.Timer(0.2, gate.set)
    timer.start()
    assert list(read_ahead(iter([Slow(0, [])]), num_threads=2, max_bytes=1, waiting=waiting)) == [0]
    timer.join()
    assert 0.05 < waiting.wait_s < 10


def test_threads_that_read_compute_alone_and_others_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []

        class Torch(Job):
            def second(self) -> None:
                seen.append(torch.get_num_threads())

        for _ in range(20):  # threads start at the same time
            assert list(start(iter([Torch(i, []) for i in range(5)]))) == list(range(5))
        assert seen == [1] * 100
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert (torch.get_num_threads(), seen[-1]) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_parts_of_one_batch_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)

    class Wide(Job):
        def parts(self) -> Sequence[Callable[[], None]]:
            return [lambda: meeting.wait() and None] * 3

    assert list(start(iter([Wide(0, [])]))) == [0]
