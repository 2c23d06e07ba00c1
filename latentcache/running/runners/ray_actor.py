"""One GPU's worker as a Ray actor, which ends in order if it is told to."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import torch

from latentcache.core.devices import resolve_device
from latentcache.core.records import ShardReport
from latentcache.running import stall
from latentcache.running.attempt import Failed, GivenBack, attempt
from latentcache.running.events import worker_name
from latentcache.running.one_decode import SharedWorker
from latentcache.running.runners.elastic import Layout
from latentcache.running.runners.ray_cluster import nodes
from latentcache.running.runners.ray_metrics import WorkerMetrics
from latentcache.running.runners.warning_log import WarningLog
from latentcache.running.start import Start
from latentcache.running.worker import ShardWorker, Worker, WorkerSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is. gpus: those that Ray assigned to it; node: the machine, as Ray knows it."""

    name: str
    gpus: Sequence[Any]
    node: str


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker answers now and then: clips and steps since its start, and what was logged lately.

    is_leaving: it was told to end, and takes no more shards.
    """

    clips_done: int
    num_steps: int
    warnings: tuple[str, ...]
    is_leaving: bool


class EncodeActor:
    """One GPU's worker. Its methods run in threads: shards in hand, and one that answers the driver."""

    def __init__(
        self, spec: WorkerSpec, layout: Layout, number: int, search: Sequence[str]
    ) -> None:
        sys.path.extend(path for path in search if path not in sys.path)
        self._log = WarningLog()
        self._log.__enter__()  # for as long as this process lives
        self._is_leaving = False
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        self._gpus = context.get_accelerator_ids().get("GPU", [])
        shares = layout.per_gpu > 1
        self._name = worker_name(socket.gethostname(), self._gpus, number, shares=shares)
        self._worker = started(spec, partial(self._start, spec, layout))
        self._metrics = WorkerMetrics(self._name)
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler ends the process at once.
            signal.signal(signal.SIGTERM, lambda *_: self.leave())

    def _start(self, spec: WorkerSpec, layout: Layout, device: torch.device) -> Worker:
        own = next((node for node in nodes() if node.id == self._node), None)
        if own is not None:
            spec = replace(spec, num_cpus=layout.num_cpus(own))
        if device.type == "cpu":
            if self._gpus:
                log.warning(
                    "Ray gave a worker of %s GPU %s, but torch finds none there, so it encodes on the CPU. "
                    "Is the GPU well (nvidia-smi), and has this torch (%s) CUDA? With run.device: cuda "
                    "such a worker is refused; with cpu, Ray is asked for no GPU.",
                    socket.gethostname(), ", ".join(map(str, self._gpus)), torch.__version__,
                )  # fmt: skip
            torch.set_num_threads(spec.num_cpus)  # Ray allows a single one
        return spec.start(device)

    def place(self) -> Place | Failed:
        """Return where this worker is, or why it cannot work."""
        if isinstance(self._worker, Failed):
            return self._worker
        return Place(name=self._name, gpus=list(self._gpus), node=self._node)

    def encode_shard(self, shard: Any) -> ShardReport | Failed | GivenBack:
        """Encode and commit one shard, or say how that failed.

        What fails while the worker is leaving may have failed for that: it is given back.
        """
        if self._is_leaving:
            return GivenBack()
        outcome = attempt(partial(self._up.encode_shard, shard))
        if not isinstance(outcome, Failed):
            self._metrics.add(outcome)
        elif self._is_leaving and outcome.stop is None:
            return GivenBack()
        return outcome

    def progress(self) -> Beat:
        """Return how far this worker is."""
        return Beat(
            clips_done=self._up.clips_done,
            num_steps=self._up.num_steps,
            warnings=self._log.take(),
            is_leaving=self._is_leaving,
        )

    def leave(self) -> None:
        """Take no more shards, give back those that are not being encoded, and finish the rest."""
        self._is_leaving = True
        if isinstance(self._worker, ShardWorker | SharedWorker):
            self._worker.give_back()

    def close(self) -> None:
        """Stop decoding, and wait for what is being encoded; a shard that is being written is finished."""
        self._up.close()

    @property
    def _up(self) -> Worker:
        assert not isinstance(self._worker, Failed), "only a worker that is up is asked for more"
        return self._worker


def started(spec: WorkerSpec, start: Callable[[torch.device], Worker]) -> Worker | Failed:
    """Start a worker on the device that the run asks for, with the patience that the device takes."""
    run = spec.config.run
    device = attempt(partial(resolve_device, run.device, "run.device"), starting=True)
    if isinstance(device, Failed):
        return device
    watch = stall.watch(run, spec.manifest, device.type)
    return Start(partial(start, device), watch).result()
