"""The Ray runner, the only user of ray: one actor a GPU; actors that die are replaced."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import ray_constants
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.job_config import JobConfig

from latentcache.config.sections import RunConfig
from latentcache.core.devices import resolve_device
from latentcache.core.machine import num_cpus
from latentcache.core.records import ShardReport
from latentcache.errors import ConfigError, EncoderError, MachineError
from latentcache.running import stall
from latentcache.running.attempt import Failed, attempt, in_one_line
from latentcache.running.events import Died, Event, Progress, Started, Task, worker_name
from latentcache.running.queue import LoadShard, WorkQueue
from latentcache.running.runners.ray_metrics import RunMetrics, WorkerMetrics
from latentcache.running.runners.ray_watch import RayWatch, message
from latentcache.running.runners.warning_log import WarningLog
from latentcache.running.start import Start
from latentcache.running.worker import SHARDS_IN_HAND, Worker, WorkerSpec

PROGRESS_INTERVAL_S = 1.0
#: A worker that is stopped may finish what it is writing in this time.
STOP_S = 10.0
#: Only reports travel through Ray's object store; this is near the smallest that Ray accepts.
OBJECT_STORE_BYTES = 100 << 20


class EncodeActor:
    """One GPU's worker. Its methods run in threads: shards in hand, and one that answers the driver."""

    def __init__(self, spec: WorkerSpec, number: int, search: Sequence[str]) -> None:
        sys.path.extend(path for path in search if path not in sys.path)
        self._log = WarningLog()
        self._log.__enter__()  # for as long as this process lives
        start = Start(partial(_start_worker, spec), _watch_of(spec))
        self._worker = start.result()
        self._gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        self._name = worker_name(socket.gethostname(), self._gpus, number)
        self._metrics = WorkerMetrics(self._name)

    def place(self) -> tuple[str, list[Any]] | Failed:
        """Return this worker's name and the GPUs that Ray assigned to it, or why it cannot work."""
        if isinstance(self._worker, Failed):
            return self._worker
        return self._name, list(self._gpus)

    def encode_shard(self, shard: Any) -> ShardReport | Failed:
        """Encode and commit one shard, or say how that failed."""
        outcome = attempt(partial(self._up.encode_shard, shard))
        if not isinstance(outcome, Failed):
            self._metrics.add(outcome)
        return outcome

    def progress(self) -> tuple[int, int, tuple[str, ...]]:
        """Return the clips done and the steps since the start, and what was logged since the last time."""
        return self._up.clips_done, self._up.num_steps, self._log.take()

    def close(self) -> None:
        """Stop decoding, and wait for what is being encoded; a shard that is being written is finished."""
        self._up.close()

    @property
    def _up(self) -> Worker:
        assert not isinstance(self._worker, Failed), "only a worker that is up is asked for more"
        return self._worker


def _watch_of(spec: WorkerSpec) -> stall.Watch:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return stall.watch(spec.config.run, spec.manifest, device)


def _start_worker(spec: WorkerSpec) -> Worker:
    device = resolve_device(spec.config.run.device, "run.device")
    if device.type == "cpu":
        torch.set_num_threads(spec.num_cpus)  # Ray allows a single one
    return spec.start(device)


@dataclass(eq=False)
class _Slot:
    """One place for an actor. in_hand: what it is working on, by the reference of the result."""

    actor: Any = None
    name: str = ""
    ready: Any = None
    is_up: bool = False
    failed_starts: int = 0
    in_hand: dict[Any, Task] = field(default_factory=dict)
    clips_before: int = 0
    clips_done: int = 0
    num_steps: int = 0
    num_settled: int = 0
    watch: stall.Watch | None = None

    def stall(self) -> str | None:
        """Return why it is to be replaced: what it has in hand has not advanced for too long."""
        assert self.watch is not None, "made when an actor is started"
        if not self.in_hand:
            self.watch.rest()
            return None
        stands_still = self.watch.stands_still(self.num_steps + self.num_settled)
        return self.watch.why if stands_still else None

    def has_room(self) -> bool:
        alone = any(task.attempts for task in self.in_hand.values())
        return self.is_up and not alone and len(self.in_hand) < SHARDS_IN_HAND


def run(spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> Iterator[Event]:
    """Encode every shard of `work` on Ray actors, yielding events as they come."""
    started_here = connect(spec.config.run.ray_address)
    runner = _Runner(spec, work, load_shard)
    metrics = RunMetrics()
    watch = _watch()
    try:
        for event in runner.events():
            if lost := watch.notice():
                raise MachineError(message(lost))
            metrics.add(event)
            yield event
    except RayError as error:
        if lost := watch.notice():
            raise MachineError(message(lost)) from error
        raise
    finally:
        if not watch.notice():  # of a Ray that is gone nothing can be asked
            watch.close()
            runner.stop()
            if started_here:
                ray.shutdown()


def _watch() -> RayWatch:
    """Return what watches the processes of the Ray that this one has joined."""
    node = ray._private.worker.global_worker.node
    return RayWatch(node.gcs_address, node.raylet_socket_name)


def connect(address: str | None) -> bool:
    """Join the cluster at `address` (or of RAY_ADDRESS), or start Ray here. Returns whether it started.

    Raises ConfigError where the cluster cannot be reached.
    """
    if ray.is_initialized():
        return False
    with _own_sigterm():
        _connect(address)
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's SIGTERM handler: Ray puts one in its place that ends the driver at once."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


class _NoFolders(list[str]):
    """Stays empty when Ray adds the driver's folder to what its workers search first.

    There a `queue.py` would shadow the library's. What the driver finds, workers find: see _search_path.
    """

    def extend(self, _: Iterable[str]) -> None:
        """Add nothing."""


def _search_path() -> list[str]:
    """Return where the driver finds modules; an encoder of others may be in the current folder."""
    return [str(Path(path or ".").absolute()) for path in sys.path]


def _own_interpreter() -> None:
    """Let workers run in the driver's environment: under `uv run`, Ray would make each one of its own."""
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    if "uv_runtime_env_hook" in os.environ.get(ray_constants.RAY_RUNTIME_ENV_HOOK, ""):
        del os.environ[ray_constants.RAY_RUNTIME_ENV_HOOK]


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _own_interpreter()
    job_config = JobConfig()
    job_config._py_driver_sys_path = _NoFolders()
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "job_config": job_config,
    }
    if address is None and "RAY_ADDRESS" not in os.environ:
        local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address="local", num_cpus=num_cpus(), **local, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"Ray cannot start on this machine: {in_one_line(error)}. Set RAY_TMPDIR to a folder with "
                "a short path and room, or use run.runner=local, which needs no Ray."
            ) from error
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at {address or os.environ['RAY_ADDRESS']}: {error}. Start one with "
            "`ray start --head`, or leave run.ray_address out to run on this machine."
        ) from error


def num_workers(run_config: RunConfig) -> tuple[int, int]:
    """Return (actors, GPUs an actor) for the cluster's resources; raises ConfigError."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if run_config.device != "cpu" else 0
    if run_config.device == "cuda" and not gpus:
        raise ConfigError(
            "run.device='cuda' is not there: the Ray cluster has no GPU. Use run.device=auto or cpu, or "
            "start the run when nodes with GPUs have joined."
        )
    if run_config.workers == "auto":
        return max(1, gpus), int(gpus > 0)
    if gpus and run_config.workers > gpus:
        raise ConfigError(
            f"run.workers is {run_config.workers}, and the cluster has {gpus} GPUs: a worker needs one. "
            f"Use run.workers={gpus} or auto."
        )
    return run_config.workers, int(gpus > 0)


class _Runner:
    def __init__(self, spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> None:
        self._work = work
        self._load_shard = load_shard
        self._max_starts = spec.config.run.max_retries + 1
        workers, gpus = num_workers(spec.config.run)
        cpus = ray.cluster_resources().get("CPU", 1.0)
        self._spec = replace(spec, num_cpus=max(1, int(cpus // workers)))
        self._device = "cuda" if gpus else "cpu"
        self._options = {
            "num_gpus": gpus,
            "num_cpus": min(1.0, cpus / workers),
            "max_concurrency": SHARDS_IN_HAND + 1,
            "max_restarts": 0,
        }
        self._slots = [_Slot() for _ in range(min(workers, max(1, len(work))))]
        self._polled = 0.0

    def events(self) -> Iterator[Event]:
        for slot in self._slots:
            self._start(slot)
        while self._work or any(slot.in_hand for slot in self._slots):
            self._hand_out()
            for slot, reference in self._finished():
                yield from self._settle(slot, reference)
            if time.monotonic() - self._polled > PROGRESS_INTERVAL_S:
                yield self._poll()
                for slot in self._slots:
                    if why := slot.stall():
                        yield from self._replace(slot, why)
        yield self._poll()

    def stop(self) -> None:
        up = [slot.actor.close.remote() for slot in self._slots if slot.is_up]
        if up:
            ray.wait(up, num_returns=len(up), timeout=STOP_S)
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)

    def _start(self, slot: _Slot) -> None:
        slot.clips_before += slot.clips_done
        slot.clips_done = 0
        slot.num_steps = 0
        slot.watch = stall.watch(self._spec.config.run, self._spec.manifest, self._device)
        slot.is_up = False
        slot.name = ""
        number = self._slots.index(slot)
        actor = ray.remote(EncodeActor).options(**self._options)
        slot.actor = actor.remote(self._spec, number, _search_path())
        slot.ready = slot.actor.place.remote()

    def _hand_out(self) -> None:
        """Give every worker with room one more task, the least loaded first, until none has room."""
        for slot in sorted(self._slots, key=lambda slot: len(slot.in_hand)) * SHARDS_IN_HAND:
            if not slot.has_room():
                continue
            task = self._work.take(alone=not slot.in_hand)
            if task is None:
                continue
            shard = self._load_shard(task.shard)
            slot.in_hand[slot.actor.encode_shard.remote(shard)] = task

    def _finished(self) -> list[tuple[_Slot, Any]]:
        owners = {ref: slot for slot in self._slots for ref in slot.in_hand}
        owners.update({slot.ready: slot for slot in self._slots if slot.ready is not None})
        done, _ = ray.wait(list(owners), num_returns=1, timeout=PROGRESS_INTERVAL_S)
        return [(owners[reference], reference) for reference in done]

    def _settle(self, slot: _Slot, reference: Any) -> Iterator[Event]:
        if reference is slot.ready:
            yield from self._settle_start(slot)
            return
        task = slot.in_hand.pop(reference, None)
        if task is None:
            return  # the actor died, and this was settled with the rest of what it had in hand
        slot.num_settled += 1
        try:
            outcome = ray.get(reference)
        except RayActorError as error:
            slot.in_hand[reference] = task
            yield from self._replace(slot, f"its worker died: {in_one_line(error)}")
        except (
            RayError
        ) as error:  # the task or its result was lost on the way, and not by the encoder
            yield self._work.failed(task, in_one_line(error))
        else:
            yield self._work.settle(task, outcome, slot.name)

    def _replace(self, slot: _Slot, why: str) -> Iterator[Event]:
        lost = list(slot.in_hand.values())
        slot.in_hand.clear()
        ray.kill(slot.actor)  # it may only be out of reach, and would keep its GPU
        yield Died(name=slot.name, error=why.removeprefix("its worker died: "))
        for each in lost:
            yield self._work.failed(each, why)
        self._start(slot)

    def _settle_start(self, slot: _Slot) -> Iterator[Event]:
        reference, slot.ready = slot.ready, None
        try:
            place = ray.get(reference)
        except RayError as error:
            place = Failed(error=in_one_line(error))
        if isinstance(place, Failed):
            yield from self._settle_failed_start(slot, place)
            return
        slot.name, gpus = place
        slot.is_up = True
        slot.failed_starts = 0
        number = self._slots.index(slot)
        yield Started(worker=number, name=slot.name, gpus=tuple(map(str, gpus)))

    def _settle_failed_start(self, slot: _Slot, failed: Failed) -> Iterator[Event]:
        slot.failed_starts += 1
        yield Died(name=slot.name, error=failed.error)
        if failed.stop is not None:
            raise failed.stop
        if slot.failed_starts >= self._max_starts:
            raise EncoderError(
                f"a worker could not start, {slot.failed_starts} times: {failed.error}"
            )
        ray.kill(slot.actor)
        self._start(slot)

    def _poll(self) -> Progress:
        self._polled = time.monotonic()
        up = [slot for slot in self._slots if slot.is_up]
        references = {slot.actor.progress.remote(): slot for slot in up}
        answered, _ = (
            ray.wait(list(references), num_returns=len(up), timeout=0.2) if up else ([], [])
        )
        warnings: tuple[str, ...] = ()
        for reference in answered:
            try:
                slot = references[reference]
                slot.clips_done, slot.num_steps, fresh = ray.get(reference, timeout=1)
                warnings += fresh
            except (RayActorError, GetTimeoutError):
                continue  # what it had in hand says so too
        clips = sum(slot.clips_before + slot.clips_done for slot in self._slots)
        in_hand = sum(len(slot.in_hand) for slot in self._slots)
        return Progress(
            clips_done=clips, workers=len(up), shards_in_hand=in_hand, warnings=warnings
        )
