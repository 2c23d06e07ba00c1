"""Where a cluster's workers go, and what each may use there, while machines come and go. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentcache.config.sections import RunConfig
from latentcache.core.machine import num_cpus
from latentcache.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster. cpus, gpus: what may be handed out there, to whomever."""

    id: str
    cpus: float
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How workers lie on the cluster.

    num_workers: None: as many as there is room for, now or later. per_gpu: workers that share a GPU; 0:
    they run on CPUs, `per_node` of them on a machine.
    """

    num_workers: int | None
    per_gpu: int
    per_node: int

    def seats(self, nodes: Sequence[Node]) -> list[str | None]:
        """Return the seats that the machines have: the machine of each, None where it does not matter.

        A worker with a GPU goes to where one is free. Workers on CPUs have a machine each, because each
        uses all CPUs.
        """
        if self.num_workers is not None:
            return [None] * self.num_workers
        if self.per_gpu:
            return [None] * (self.per_gpu * sum(node.gpus for node in nodes))
        return [node.id for node in _with_cpus(nodes)]

    def num_cpus(self, node: Node) -> int:
        """Return the CPUs that a worker on a machine may use: its share of that machine's."""
        workers = node.gpus * self.per_gpu if self.per_gpu else self.per_node
        if self.num_workers is not None:
            workers = min(workers, self.num_workers)
        return max(1, int((node.cpus or num_cpus()) // max(1, workers)))

    def claim(self, nodes: Sequence[Node]) -> tuple[float, float]:
        """Return the GPUs and CPUs of a machine that each worker takes up.

        Not more CPUs than the machine with the fewest for each worker has, or a worker would not fit there.
        """
        if self.per_gpu:
            places = [(node.cpus, node.gpus * self.per_gpu) for node in nodes if node.gpus]
            return 1.0 / self.per_gpu, min([1.0, *(cpus / workers for cpus, workers in places)])
        return 0.0, min([1.0, *(node.cpus / self.per_node for node in _with_cpus(nodes))])


def layout_for(run: RunConfig, nodes: Sequence[Node], per_gpu: int = 1) -> Layout:
    """Return how a run's workers lie on the machines that there are, `per_gpu` of them on a GPU.

    Raises ConfigError.
    """
    gpus = sum(node.gpus for node in nodes) if run.device != "cpu" else 0
    if run.device == "cuda" and not gpus:
        raise ConfigError(
            "run.device='cuda' is not there: the Ray cluster has no GPU. Use run.device=auto or cpu, or "
            "start the run when nodes with GPUs have joined."
        )
    if run.workers == "auto":
        return Layout(num_workers=None, per_gpu=per_gpu if gpus else 0, per_node=1)
    if gpus and run.workers > gpus * per_gpu:
        raise ConfigError(
            f"run.workers is {run.workers}, and the cluster has {gpus} GPUs: a worker needs "
            f"{'one' if per_gpu == 1 else f'a part of one (run.workers_per_gpu={per_gpu})'}. "
            f"Use run.workers={gpus * per_gpu} or auto."
        )
    per_node = -(-run.workers // max(1, len(_with_cpus(nodes))))
    return Layout(num_workers=run.workers, per_gpu=per_gpu if gpus else 0, per_node=per_node)


def new_seats(
    taken: Sequence[str | None], wanted: Sequence[str | None], most: int
) -> list[str | None]:
    """Return which seats are to be taken beside those that are, at most so many."""
    anywhere = max(0, wanted.count(None) - taken.count(None))
    own = [seat for seat in wanted if seat is not None and seat not in taken]
    return [*[None] * anywhere, *own][: max(0, most)]


def _with_cpus(nodes: Sequence[Node]) -> Sequence[Node]:
    """Return the machines that lend CPUs; all if none does, as where Ray was told to hand out none."""
    return [node for node in nodes if node.cpus >= 1] or nodes
