"""How many workers share a GPU with `run.workers_per_gpu: auto`: as many as have memory and CPUs there.

What a worker takes of the memory is measured, before any of them starts, by doing its work with noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentcache.config.sections import RunConfig
from latentcache.running.rehearsal import rehearse
from latentcache.running.runners.elastic import Node
from latentcache.running.worker import WorkerSpec

#: More workers than this hardly make a GPU busier.
MAX_PER_GPU = 4
#: A worker with fewer CPUs waits for its clips anyway: it decodes with all but one.
MIN_CPUS = 4
#: What CUDA and its libraries take for each process, beside torch's own.
CONTEXT_BYTES = 1 << 30
#: Of a GPU's free memory, what is handed out. torch keeps what clips of other sizes have left.
USED_FRACTION = 0.8


@dataclass(frozen=True, kw_only=True)
class GpuNeed:
    """What one worker takes of a GPU's memory, and what was free before; worker_bytes None: all of it."""

    free_bytes: int
    worker_bytes: int | None


def workers_per_gpu(need: GpuNeed, cpus_per_gpu: float) -> int:
    """Return how many workers share a GPU."""
    if not need.worker_bytes:
        return 1
    by_memory = int(USED_FRACTION * need.free_bytes // need.worker_bytes)
    return max(1, min(MAX_PER_GPU, by_memory, int(cpus_per_gpu // MIN_CPUS)))


def settled(run: RunConfig, nodes: Sequence[Node]) -> int | None:
    """Return how many workers share a GPU where that needs no measuring; else None."""
    if run.workers_per_gpu != "auto":
        return run.workers_per_gpu
    gpus = sum(node.gpus for node in nodes) if run.device != "cpu" else 0
    if run.workers != "auto":
        return max(1, math.ceil(run.workers / max(1, gpus)))
    return 1 if cpus_per_gpu(nodes) < 2 * MIN_CPUS or not gpus else None


def cpus_per_gpu(nodes: Sequence[Node]) -> float:
    """Return the CPUs for each GPU on the machine that has the fewest."""
    return min((node.cpus / node.gpus for node in nodes if node.gpus), default=0.0)


def measure(spec: WorkerSpec) -> GpuNeed:
    """Do with noise, on this process's GPU, what a worker does, and return what that took.

    Its comparisons count too: torch keeps the memory that decoding a clip, or encoding it untiled or with
    plain kernels, has taken. Raises what building the encoder raises, and EncoderError where there is no
    memory for a batch.
    """
    if (
        not torch.cuda.is_available() or type(spec) is not WorkerSpec
    ):  # others load more than an encoder
        return GpuNeed(free_bytes=0, worker_bytes=None)
    free_bytes = torch.cuda.mem_get_info()[0]
    rehearse(spec, torch.device("cuda"))
    taken = torch.cuda.max_memory_reserved() + CONTEXT_BYTES
    return GpuNeed(free_bytes=free_bytes, worker_bytes=taken)
