"""The local runner: one worker in this process, for debugging and small corpora."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

from latentcache.core.machine import resolve_device
from latentcache.core.records import ShardReport
from latentcache.errors import EncoderError
from latentcache.running.attempt import Failed, attempt
from latentcache.running.events import Event, Progress, Started, Task, worker_name
from latentcache.running.queue import LoadShard, WorkQueue
from latentcache.running.runners.warning_log import WarningLog
from latentcache.running.worker import SHARDS_IN_HAND, Worker, WorkerSpec

PROGRESS_INTERVAL_S = 1.0


def run(spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> Iterator[Event]:
    """Encode every shard of `work`, yielding events as they come.

    Raises ConfigError where there is no such device, EncoderError where the encoder cannot be built.
    """
    device = resolve_device(spec.config.run.device, "run.device")
    with WarningLog() as log:
        worker = attempt(partial(spec.start, device), starting=True)
        if isinstance(worker, Failed):
            raise worker.stop or EncoderError(f"the worker could not start: {worker.error}")
        yield from _run(worker, log, work, load_shard)


def _run(
    worker: Worker, log: WarningLog, work: WorkQueue, load_shard: LoadShard
) -> Iterator[Event]:
    running: dict[Future[ShardReport | Failed], Task] = {}
    pool = ThreadPoolExecutor(SHARDS_IN_HAND, thread_name_prefix="shard")
    try:
        name = worker_name(socket.gethostname(), (), 0)
        yield Started(worker=0, name=name, gpus=())
        while work or running:
            _fill(worker, work, load_shard, pool, running)
            done, _ = wait(running, timeout=PROGRESS_INTERVAL_S, return_when=FIRST_COMPLETED)
            for future in done:
                yield work.settle(running.pop(future), future.result(), name)
            yield Progress(
                clips_done=worker.clips_done,
                workers=1,
                shards_in_hand=len(running),
                warnings=log.take(),
            )
    finally:
        worker.close()  # a shard whose clips are not decoded fails at once; one that is written is finished
        pool.shutdown(cancel_futures=True)


def _fill(
    worker: Worker,
    work: WorkQueue,
    load_shard: LoadShard,
    pool: ThreadPoolExecutor,
    running: dict[Future[ShardReport | Failed], Task],
) -> None:
    while len(running) < SHARDS_IN_HAND and not any(task.attempts for task in running.values()):
        task = work.take(alone=not running)
        if task is None:
            return
        encode = partial(worker.encode_shard, load_shard(task.shard))
        running[pool.submit(attempt, encode)] = task
