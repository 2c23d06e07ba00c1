"""What a DataLoader's worker cannot hand over to the trainer raises there, instead of vanishing."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.queues import Queue
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from latentcache.errors import LatentCacheError

#: Files that a worker needs beside those of a batch: each tensor of it takes two while it is handed over.
SPARE_FILES = 16

_print_error = Queue._on_queue_feeder_error  # type: ignore[attr-defined]


def guard_handover() -> None:
    """Have the trainer see what a worker of a DataLoader cannot send. Outside such workers nothing changes.

    A worker's queue pickles in a thread of its own, where tensors get their shared memory. If that fails
    (a small /dev/shm, too many open files), Python prints a traceback and drops the batch. Then a
    DataLoader waits forever, or ends the epoch early. Python's hook for such errors sends the error in
    the batch's place. A queue takes the hook when it is first used, so the parent sets it for its forks.
    """
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def check_open_files() -> None:
    """Raise LatentCacheError in a worker of a DataLoader that can hardly open further files.

    Such a worker may still send a batch, but not answer the trainer, which then waits for its files for
    ever.
    """
    if (worker := get_worker_info()) is None:
        return
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(SPARE_FILES):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise _lost(worker.id, error) from None


def _lost(worker: int, error: Exception) -> LatentCacheError:
    return LatentCacheError(
        f"worker {worker} of a DataLoader could not hand over a batch: {error}. Workers send batches "
        "through shared memory and open files: give the container more of it (docker run "
        "--shm-size=8g), raise the limit of open files (ulimit -n), or use num_workers=0, with which "
        "the loader's own threads read ahead."
    )


def _send_error(queue: Queue[Any], error: Exception, item: Any) -> None:
    worker = get_worker_info()
    if worker is None or not isinstance(item, tuple) or len(item) != 2:
        _print_error(error, item)
        return
    number, data = item
    said = _lost(worker.id, error)
    failed = ExceptionWrapper(  # type: ignore[no-untyped-call]
        (LatentCacheError, said, None), where="in a DataLoader's worker"
    )
    of_torchdata = isinstance(data, tuple) and len(data) == 3 and data[1] == worker.id
    queue.put((number, (failed, *data[1:]) if of_torchdata else failed))
