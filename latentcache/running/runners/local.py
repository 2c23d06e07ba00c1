"""The local runner: one worker in this process, for debugging and small corpora."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import torch

from latentcache.core.records import ShardReport
from latentcache.errors import LatentCacheError, RunStoppedError, StorageError
from latentcache.running.events import Event, GaveUp, Progress, Retried, Started, Task, worker_name
from latentcache.running.queue import LoadShard, WorkQueue
from latentcache.running.runners.warning_log import WarningLog
from latentcache.running.worker import SHARDS_IN_HAND, ShardWorker, WorkerSpec

PROGRESS_INTERVAL_S = 1.0


def run(spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> Iterator[Event]:
    """Encode every shard of `work`, yielding events as they come."""
    device = "cuda" if spec.run.device != "cpu" and torch.cuda.is_available() else "cpu"
    with WarningLog() as log:
        yield from _run(ShardWorker(spec, torch.device(device)), log, work, load_shard)


def _run(
    worker: ShardWorker, log: WarningLog, work: WorkQueue, load_shard: LoadShard
) -> Iterator[Event]:
    running: dict[Future[ShardReport], Task] = {}
    pool = ThreadPoolExecutor(SHARDS_IN_HAND, thread_name_prefix="shard")
    try:
        name = worker_name(socket.gethostname(), (), 0)
        yield Started(worker=0, name=name, gpus=())
        while work or running:
            _fill(worker, work, load_shard, pool, running)
            done, _ = wait(running, timeout=PROGRESS_INTERVAL_S, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(future, running.pop(future), work, name)
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
    worker: ShardWorker,
    work: WorkQueue,
    load_shard: LoadShard,
    pool: ThreadPoolExecutor,
    running: dict[Future[ShardReport], Task],
) -> None:
    while len(running) < SHARDS_IN_HAND and not any(task.attempts for task in running.values()):
        task = work.take(alone=not running)
        if task is None:
            return
        shard = load_shard(task.shard)
        running[pool.submit(worker.encode_shard, shard, retry_failed=task.retry_failed)] = task


def _outcome(
    future: Future[ShardReport], task: Task, work: WorkQueue, name: str
) -> ShardReport | GaveUp | Retried:
    try:
        return replace(future.result(), worker=name)
    except (StorageError, RunStoppedError):
        raise  # the cache's storage, where no shard can be committed; or the gate's verdict
    except (LatentCacheError, OSError, RuntimeError, ValueError) as error:
        return work.failed(task, f"{type(error).__name__}: {error}")
