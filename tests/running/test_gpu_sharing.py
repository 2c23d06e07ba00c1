"""How many workers share a GPU, from what one of them takes of its memory, and from the CPUs beside it."""

from __future__ import annotations

import pytest

from latentcache.config.sections import RunConfig
from latentcache.running.gpu_sharing import (
    MAX_PER_GPU,
    MIN_CPUS,
    USED_FRACTION,
    GpuNeed,
    settled,
    workers_per_gpu,
)
from latentcache.running.runners.elastic import Node

GIB = 1 << 30
MANY_CPUS = 1000.0


@pytest.mark.parametrize("number", range(1, MAX_PER_GPU + 1))
def test_as_many_workers_share_a_gpu_as_have_memory(number: int) -> None:
    free = 80 * GIB
    need = GpuNeed(free_bytes=free, worker_bytes=int(USED_FRACTION * free / number))
    more = GpuNeed(free_bytes=free, worker_bytes=int(USED_FRACTION * free / number) + GIB)
    assert workers_per_gpu(need, MANY_CPUS) == number
    assert workers_per_gpu(more, MANY_CPUS) == max(1, number - 1)


def test_there_is_a_bound_and_always_one() -> None:
    assert workers_per_gpu(GpuNeed(free_bytes=80 * GIB, worker_bytes=1), MANY_CPUS) == MAX_PER_GPU
    assert workers_per_gpu(GpuNeed(free_bytes=GIB, worker_bytes=2 * GIB), MANY_CPUS) == 1
    assert workers_per_gpu(GpuNeed(free_bytes=80 * GIB, worker_bytes=None), MANY_CPUS) == 1
    assert workers_per_gpu(GpuNeed(free_bytes=0, worker_bytes=None), 0.0) == 1


@pytest.mark.parametrize("number", range(1, MAX_PER_GPU))
def test_each_worker_has_cpus_to_decode_with(number: int) -> None:
    need = GpuNeed(free_bytes=80 * GIB, worker_bytes=GIB)
    assert workers_per_gpu(need, number * MIN_CPUS) == number
    assert workers_per_gpu(need, (number + 1) * MIN_CPUS - 1) == number


def node(cpus: float, gpus: int) -> Node:
    return Node(id="a", cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("run", "there", "expected"),
    [
        ({}, node(64, 8), 1),
        ({"workers_per_gpu": 3}, node(64, 8), 3),
        ({"workers_per_gpu": "auto"}, node(64, 8), None),
        ({"workers_per_gpu": "auto"}, node(8, 2), 1),
        ({"workers_per_gpu": "auto"}, node(64, 0), 1),
        ({"workers_per_gpu": "auto", "device": "cpu"}, node(64, 8), 1),
        ({"workers_per_gpu": "auto", "workers": 8}, node(64, 8), 1),
        ({"workers_per_gpu": "auto", "workers": 9}, node(64, 8), 2),
    ],
)
def test_only_what_is_left_open_is_measured(
    run: dict[str, object], there: Node, expected: int | None
) -> None:
    assert settled(RunConfig.model_validate(run), [there]) == expected
