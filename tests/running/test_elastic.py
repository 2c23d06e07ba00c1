"""Which seats workers take on machines that come and go, and what each may use there."""

from __future__ import annotations

import pytest

from latentcache.config.sections import RunConfig
from latentcache.core.records import ShardId
from latentcache.errors import ConfigError
from latentcache.running.events import Left, Task, worker_name
from latentcache.running.gpu_sharing import settled
from latentcache.running.log_lines import describe
from latentcache.running.queue import WorkQueue
from latentcache.running.runners.elastic import Layout, Node, layout_for, new_seats


def node(name: str, cpus: float = 8.0, gpus: int = 0) -> Node:
    return Node(id=name, cpus=cpus, gpus=gpus)


def layout(*nodes: Node, **run: object) -> Layout:
    config = RunConfig.model_validate(run)
    return layout_for(config, nodes, settled(config, nodes) or 1)


def test_workers_with_gpus_go_where_one_is_free() -> None:
    head, one, two = node("head"), node("a", gpus=2), node("b", gpus=4)
    found = layout(head, one)
    assert found.seats([head, one]) == [None] * 2
    assert found.seats([head, one, two]) == [None] * 6
    assert found.claim([head, one, two])[0] == 1.0


def test_workers_on_cpus_have_a_machine_each() -> None:
    found = layout(node("a"))
    assert found.seats([node("a"), node("none", cpus=0), node("b")]) == ["a", "b"]
    assert found.seats([node("none", cpus=0)]) == ["none"]
    assert found.claim([node("a"), node("b")]) == (0.0, 1.0)


def test_a_run_that_has_begun_on_cpus_stays_there_when_a_gpu_comes() -> None:
    found = layout(node("a"))
    assert found.seats([node("a"), node("b", gpus=8)]) == ["a", "b"]


def test_a_number_of_workers_is_kept_to_whatever_comes() -> None:
    found = layout(node("a", gpus=4), workers=3)
    assert found.seats([node("a", gpus=4), node("b", gpus=4)]) == [None] * 3
    assert found.seats([]) == [None] * 3


@pytest.mark.parametrize(
    ("run", "machine", "share"),
    [
        ({}, node("a", cpus=32, gpus=8), 4),
        ({}, node("a", cpus=6, gpus=4), 1),
        ({}, node("a", cpus=2, gpus=4), 1),
        ({"workers_per_gpu": 2}, node("a", cpus=32, gpus=8), 2),
        ({"workers": 2}, node("a", cpus=32, gpus=8), 16),
        ({}, node("a", cpus=32), 32),
        ({"workers": 4}, node("a", cpus=32), 8),
    ],
)
def test_each_worker_has_its_share_of_its_own_machines_cpus(
    run: dict[str, object], machine: Node, share: int
) -> None:
    other = node("other", cpus=128, gpus=machine.gpus)
    assert layout(machine, **run).num_cpus(machine) == share
    if "workers" not in run:
        assert layout(machine, other, **run).num_cpus(machine) == share


@pytest.mark.parametrize("per_gpu", [1, 2, 3])
@pytest.mark.parametrize("cpus", [1, 4, 7, 64])
def test_as_many_workers_fit_on_each_machine_as_it_has_seats(per_gpu: int, cpus: int) -> None:
    """Ray hands out hundredths of per cent."""
    machines = [node("small", cpus=cpus, gpus=8), node("large", cpus=256, gpus=2)]
    found = layout(*machines, workers_per_gpu=per_gpu)
    gpus, claimed = found.claim(machines)
    assert gpus * per_gpu <= 1.0
    for machine in machines:
        assert claimed * machine.gpus * per_gpu <= machine.cpus + 1e-9


def test_more_workers_than_gpus_have_room_for_are_refused() -> None:
    assert layout(node("a", gpus=2), workers=4, workers_per_gpu=2).num_workers == 4
    with pytest.raises(ConfigError, match=r"has 2 GPUs.*run\.workers=4 or auto"):
        layout(node("a", gpus=2), workers=5, workers_per_gpu=2)
    with pytest.raises(ConfigError, match=r"run\.device='cuda' is not there"):
        layout(node("a"), device="cuda")


def test_seats_are_taken_once_and_not_more_than_there_are_shards() -> None:
    assert new_seats([], [None, None, None], 2) == [None, None]
    assert new_seats([None], [None, None, None], 9) == [None, None]
    assert new_seats([None, None], [None], 9) == []
    assert new_seats(["a"], ["a", "b"], 9) == ["b"]
    assert new_seats(["a"], ["b"], 0) == []
    assert new_seats(["a"], ["b"], -1) == []


def test_what_is_given_back_is_taken_next_and_has_not_failed() -> None:
    queue = WorkQueue([Task(shard=ShardId("b", n)) for n in range(3)], max_retries=0)
    first = queue.take(alone=True)
    assert first is not None
    queue.give_back(first)
    assert queue.take(alone=True) is first
    assert first.attempts == 0


def test_a_task_that_had_failed_stays_one_to_be_tried_alone() -> None:
    queue = WorkQueue([Task(shard=ShardId("b", n)) for n in range(2)], max_retries=3)
    first = queue.take(alone=True)
    assert first is not None
    queue.failed(first, "x")
    assert queue.take(alone=True) is first
    queue.give_back(first)
    assert queue.take(alone=False) is not first
    assert queue.take(alone=True) is first


def test_a_worker_that_left_is_logged() -> None:
    (line,) = describe(Left(name="h/gpu0", num_given_back=2))
    assert line == ("worker_left", {"worker": "h/gpu0", "num_given_back": 2})


def test_workers_that_share_a_gpu_have_names_of_their_own() -> None:
    assert worker_name("h", ["0"], 3) == "h/gpu0"
    assert worker_name("h", ["0"], 3, shares=True) == "h/gpu0/worker3"
    assert worker_name("h", [], 3) == "h/worker3"
