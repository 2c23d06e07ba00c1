"""What the worker of a DataLoader inherits from the trainer's process ends there, not in the worker."""

from __future__ import annotations

import gc
import os

from torch.utils.data import get_worker_info

_frozen_in = 0  # the process


def leave_inherited() -> None:
    """Keep the garbage collector of a DataLoader's worker from what existed before. Once a worker.

    A forked worker has a copy of everything, also of what only a collection would end: a decoder or a
    database connection whose threads were not copied. Where PyAV or DuckDB ends that, the worker hangs or
    dies of a segmentation fault. Python's documentation of gc.freeze says the same of forks.
    """
    global _frozen_in
    if _frozen_in != os.getpid() and get_worker_info() is not None:
        gc.freeze()
        _frozen_in = os.getpid()
