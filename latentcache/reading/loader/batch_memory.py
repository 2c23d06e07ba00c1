"""Memory for batches: in huge pages if there are any, and reused once a batch is freed.

The first write to a new page costs a fault: on some machines more than decompressing into the page.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref

import numpy as np
import torch

#: Smaller tensors come from torch's own allocator.
LEAST_MAPPED_BYTES = 1 << 20


class Recycler:
    """Hands out CPU tensors, and keeps the memory of freed ones for the next.

    max_free_bytes bounds what is kept beside the tensors in use, except for what threads give back at the
    same moment. Thread-safe without a lock: a fork would copy a held one, and memory comes back from the
    garbage collector, in any thread and at any line. After a fork the child has its own copy of
    everything; a pickled one starts empty.
    """

    def __init__(self, max_free_bytes: int) -> None:
        self._max_free_bytes = max_free_bytes
        self._free: list[mmap.mmap] = []  # the most recently freed one is last

    def __reduce__(self) -> tuple[type[Recycler], tuple[int]]:
        return type(self), (self._max_free_bytes,)

    @property
    def free_bytes(self) -> int:
        """Bytes that are kept and not in use."""
        return sum(map(len, self._free.copy()))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised contiguous tensor; its memory comes back when no one holds it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < LEAST_MAPPED_BYTES:
            return torch.empty(shape, dtype=dtype)
        memory = self._take(num_bytes)
        array = np.frombuffer(memory, dtype=np.uint8)  # lives as long as a tensor made from it
        weakref.finalize(array, self._give_back, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    def _take(self, num_bytes: int) -> mmap.mmap:
        for memory in reversed(
            self._free.copy()
        ):  # recently freed memory may still be in CPU caches
            if len(memory) == num_bytes:
                with contextlib.suppress(ValueError):  # another thread has taken it
                    self._free.remove(memory)
                    return memory
        return _map(num_bytes)

    def _give_back(self, memory: mmap.mmap) -> None:
        if len(memory) > self._max_free_bytes:
            return
        self._free.append(memory)
        # The oldest is dropped: sizes no longer in use would keep out those that are.
        while self.free_bytes > self._max_free_bytes:
            with contextlib.suppress(IndexError):
                self._free.pop(0)


def _map(num_bytes: int) -> mmap.mmap:
    """Map private memory: if it were shared, a forked child would write into its parent's batches."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
