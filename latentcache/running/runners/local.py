"""The local runner: one worker in this process, for debugging and small corpora."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

import torch

from latentcache.core.devices import resolve_device
from latentcache.core.records import ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.errors import EncoderError, MachineError, RunStoppedError
from latentcache.running import stall
from latentcache.running.attempt import Failed, attempt
from latentcache.running.events import Died, Event, Progress, Started, Task, worker_name
from latentcache.running.failure_policy import unfit
from latentcache.running.queue import LoadShard, WorkQueue
from latentcache.running.runners.warning_log import WarningLog
from latentcache.running.start import Start
from latentcache.running.worker import SHARDS_IN_HAND, Worker, WorkerSpec

PROGRESS_INTERVAL_S = 1.0
#: Workers that stand still keep their threads and their memory, so a process has room for few of them.
MAX_STALLED = 8
#: A worker that is stopped may finish what it is writing in this time: it is that of a request to storage.
STOP_S = 60.0


def run(spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> Iterator[Event]:
    """Encode every shard of `work`, yielding events as they come.

    Raises ConfigError where there is no such device, EncoderError where the encoder cannot be built,
    MachineError where the GPU or this process fails, and RunStoppedError where one worker after the other
    stands still.
    """
    device = resolve_device(spec.config.run.device, "run.device")
    with WarningLog() as log:
        runner = _Runner(spec, device, work, load_shard)
        try:
            yield from runner.events(log)
        finally:
            runner.stop()


class _Runner:
    """Runs one worker; one that stands still is left behind, for threads cannot be ended."""

    def __init__(
        self, spec: WorkerSpec, device: torch.device, work: WorkQueue, load_shard: LoadShard
    ) -> None:
        self._spec, self._device = spec, device
        self._work, self._load_shard = work, load_shard
        self._name = worker_name(socket.gethostname(), (), 0)
        self._running: dict[Future[ShardReport | Failed], Task] = {}
        self._clips_before = self._num_settled = 0
        self._stalled: list[threading.Thread] = []
        self._worker: Worker | None = None
        self._pool = DaemonPool(SHARDS_IN_HAND, name="shard")
        self._watch = self._fresh_watch()

    def _fresh_watch(self) -> stall.Watch:
        return stall.watch(self._spec.config.run, self._spec.manifest, self._device.type)

    def _start(self, log: WarningLog) -> Iterator[Event]:
        """Start a worker, and wait until it is up."""
        start = Start(partial(self._spec.start, self._device), self._fresh_watch())
        try:
            while (worker := start.wait(PROGRESS_INTERVAL_S)) is None:
                yield self._progress(log)
            if isinstance(worker, Failed):
                raise worker.stop or EncoderError(f"the worker could not start: {worker.error}")
            self._worker = worker
        finally:
            if self._worker is None:  # the run stops: a worker that comes up later has processes
                start.leave(lambda late: late.close())
        self._watch = self._fresh_watch()
        yield Started(worker=0, name=self._name, gpus=())

    def _progress(self, log: WarningLog) -> Progress:
        return Progress(
            clips_done=self._clips_before + (self._worker.clips_done if self._worker else 0),
            workers=int(self._worker is not None),
            shards_in_hand=len(self._running),
            warnings=log.take(),
        )

    @property
    def _up(self) -> Worker:
        assert self._worker is not None, "work is handed out when a worker is up"
        return self._worker

    def events(self, log: WarningLog) -> Iterator[Event]:
        yield from self._start(log)
        while self._work or self._running:
            self._fill()
            done, _ = wait(self._running, timeout=PROGRESS_INTERVAL_S, return_when=FIRST_COMPLETED)
            for future in done:
                self._num_settled += 1
                yield self._settle(self._running.pop(future), future.result())
            if self._stands_still():
                yield from self._replace(log)
            yield self._progress(log)

    def _settle(self, task: Task, outcome: ShardReport | Failed) -> Event:
        """Return what became of a task. Raises MachineError where this process can do no more."""
        if isinstance(outcome, Failed) and outcome.is_unfit:
            raise MachineError(unfit(outcome.error))
        return self._work.settle(task, outcome, self._name)

    def stop(self) -> None:
        """Stop; a shard whose clips are not decoded fails at once, and one that is written is finished.

        A worker that hangs is left behind.
        """
        if self._worker is not None:
            self._leave(self._worker).join(STOP_S)

    def _stands_still(self) -> bool:
        if not self._running:
            self._watch.rest()
            return False
        return self._watch.stands_still(self._up.num_steps + self._num_settled)

    def _replace(self, log: WarningLog) -> Iterator[Event]:
        """Go on with another worker. If the old one wakes, it adopts what is committed."""
        why, lost = self._watch.why, list(self._running.values())
        self._running.clear()
        self._clips_before += self._up.clips_done
        left = self._leave(self._up)
        yield Died(name=self._name, error=why)
        for task in lost:
            yield self._work.lost(task, why)
        self._stalled = [thread for thread in (*self._stalled, left) if thread.is_alive()]
        if len(self._stalled) > MAX_STALLED:
            raise RunStoppedError(
                f"{len(self._stalled)} workers of this process stand still, one after the other. See what "
                "they wait for: the GPU, the storage, or the encoder itself. If they only are slow, give "
                "run.stall_s more seconds. Then resume."
            )
        yield from self._start(log)

    def _leave(self, worker: Worker) -> threading.Thread:
        """Let go of the worker; it is closed in the thread returned, for it may wait for what hangs."""
        pool, self._pool = self._pool, DaemonPool(SHARDS_IN_HAND, name="shard")
        self._worker = None
        pool.cancel()

        def close() -> None:
            worker.close()
            pool.close(None)

        closing = threading.Thread(target=close, name="closing", daemon=True)
        closing.start()
        return closing

    def _fill(self) -> None:
        while len(self._running) < SHARDS_IN_HAND and not any(
            task.attempts for task in self._running.values()
        ):
            task = self._work.take(alone=not self._running)
            if task is None:
                return
            encode = partial(self._up.encode_shard, self._load_shard(task.shard))
            self._running[self._pool.submit(partial(attempt, encode))] = task
