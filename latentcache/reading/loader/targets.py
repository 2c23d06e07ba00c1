"""Where batches go: into CPU memory, sample by sample; or through it to a device, as a whole.

A target makes the memory that a batch is read into, and the tensor that the trainer gets. The threads
that read call everything except `take`.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import get_worker_info

from latentcache.core import device_noise
from latentcache.errors import ConfigError
from latentcache.reading.loader.arrange import arranged
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.transform import Transform


class Staged(Protocol):
    """The memory of one batch."""

    def rows(self, where: Sequence[int]) -> list[torch.Tensor]:
        """Return the memory into which to read the samples at these places of the batch, as stored."""
        ...

    def done(
        self,
        rows: Sequence[torch.Tensor],
        where: Sequence[int],
        keys: Sequence[str],
        visits: Sequence[int],
    ) -> None:
        """Finish each of these samples, once its row has been read; visits: see `selection.Rows`."""
        ...

    def finish(self) -> Arriving:
        """Return the batch, once every sample is finished."""
        ...


@dataclass(frozen=True)
class Arriving:
    """Latents that are ready once the event, if there is one, has passed on their device.

    keep: the samples that could be read, if some could not.
    """

    latents: torch.Tensor
    event: torch.cuda.Event | None = None
    keep: Sequence[int] | None = None

    def take(self) -> torch.Tensor:
        """Return the latents for the next work of the calling thread on its current stream."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.latents.device)
            stream.wait_event(self.event)
            self.latents.record_stream(
                stream
            )  # otherwise their memory could be reused while they are in use
        return self.latents if self.keep is None else self.latents[list(self.keep)]


class Target(Protocol):
    """Makes the memory of batches."""

    transform: Transform

    def held_bytes(self, num_samples: int, stored_shape: tuple[int, ...]) -> int:
        """Return the host memory that a batch takes until it is handed out."""
        ...

    def stage(self, num_samples: int, stored_shape: tuple[int, ...]) -> Staged:
        """Return the memory of a batch."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised CPU memory for what `send_plain` takes."""
        ...

    def send_plain(self, tensor: torch.Tensor) -> Arriving:
        """Return a CPU tensor where batches go, with nothing done to it."""
        ...

    def arrange(self, arriving: Arriving, layout: str) -> Arriving:
        """Return latents with their axes in another order, contiguous."""
        ...


def make_target(device: torch.device, transform: Transform, memory: Recycler) -> Target:
    """Return the target for a device. Raises ConfigError for CUDA in a DataLoader's worker."""
    if device.type == "cpu":
        return CpuTarget(transform, memory)
    if device.type == "cuda" and get_worker_info() is not None:
        raise ConfigError(
            f"device {str(device)!r} in a worker of a DataLoader would give each worker a CUDA context "
            "and copy every batch twice. Leave device out and move the batches in the trainer, or "
            "iterate over the loader itself, whose threads read ahead."
        )
    return DeviceTarget(device, transform, memory)


class CpuTarget:
    """Batches in CPU memory. Samples are transformed one by one and, if possible, in place."""

    def __init__(self, transform: Transform, memory: Recycler) -> None:
        self.transform, self.memory = transform, memory
        self._of_thread = threading.local()

    def held_bytes(self, num_samples: int, stored_shape: tuple[int, ...]) -> int:
        """Return the bytes of the latents, plus the stored bytes if these have their own memory."""
        sample_bytes = math.prod(self.transform.shape(stored_shape)) * self.transform.dtype.itemsize
        if not self.transform.in_place:
            sample_bytes += math.prod(stored_shape) * self.transform.stored_dtype.itemsize
        return num_samples * sample_bytes

    def stage(self, num_samples: int, stored_shape: tuple[int, ...]) -> _CpuBatch:
        """Return the memory of a batch."""
        return _CpuBatch(self, num_samples, stored_shape)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised memory."""
        return self.memory.empty(shape, dtype)

    def send_plain(self, tensor: torch.Tensor) -> Arriving:
        """Return the tensor itself."""
        return Arriving(tensor)

    def arrange(self, arriving: Arriving, layout: str) -> Arriving:
        """Return them in memory of their own."""
        latents = arranged(arriving.latents, layout)
        out = self.memory.empty(tuple(latents.shape), latents.dtype)
        return replace(arriving, latents=out.copy_(latents))

    def work(self, shape: torch.Size) -> torch.Tensor:
        """Return this thread's memory to compute in, float32 [2, *shape]; new memory costs more."""
        work: torch.Tensor | None = getattr(self._of_thread, "work", None)
        if work is None or work.shape[1:] != shape:
            work = self._of_thread.work = torch.empty((2, *shape), dtype=torch.float32)
        return work


class _CpuBatch:
    def __init__(self, target: CpuTarget, num_samples: int, stored_shape: tuple[int, ...]) -> None:
        self._target, self._stored_shape = target, stored_shape
        self._transform = target.transform
        shape = (num_samples, *self._transform.shape(stored_shape))
        self._latents = target.memory.empty(shape, self._transform.dtype)

    def rows(self, where: Sequence[int]) -> list[torch.Tensor]:
        if self._transform.in_place:
            return [self._latents[n] for n in where]
        shape = (len(where), *self._stored_shape)
        return list(self._target.memory.empty(shape, self._transform.stored_dtype))

    def done(
        self,
        rows: Sequence[torch.Tensor],
        where: Sequence[int],
        keys: Sequence[str],
        visits: Sequence[int],
    ) -> None:
        if self._transform.idle:
            return
        for stored, n, key, visit in zip(rows, where, keys, visits, strict=True):
            out = self._latents[n]
            work, noise = self._target.work(out.shape)
            if self._transform.draws:
                self._transform.draw(noise, key, visit)
            out.copy_(self._transform(stored, noise if self._transform.draws else None, work))

    def finish(self) -> Arriving:
        return Arriving(self._latents)


class DeviceTarget:
    """Batches on a device. Stored bytes are copied there and transformed there, as a whole.

    On CUDA the copies leave pinned memory on their own stream, as soon as a batch has been read. torch's
    allocator of pinned memory reuses it once the copies from it are done, and rounds sizes up to a power
    of two.
    """

    def __init__(self, device: torch.device, transform: Transform, memory: Recycler) -> None:
        self.transform, self._memory = transform, memory
        self.device, self._stream = device, None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self.device = torch.device(
                "cuda", index
            )  # each reading thread has its own current device
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def held_bytes(self, num_samples: int, stored_shape: tuple[int, ...]) -> int:
        """Return the bytes of what is stored, rounded up if they are pinned."""
        stored = num_samples * math.prod(stored_shape) * self.transform.stored_dtype.itemsize
        return 1 << (stored - 1).bit_length() if self._stream and stored else stored

    def stage(self, num_samples: int, stored_shape: tuple[int, ...]) -> _DeviceBatch:
        """Return the memory of a batch."""
        return _DeviceBatch(self, num_samples, stored_shape)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised CPU memory to copy from."""
        if self._stream is None:
            return self._memory.empty(shape, dtype)
        with torch.cuda.device(self.device):
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, stored: torch.Tensor, seeds: Sequence[int]) -> Arriving:
        """Copy what was read to the device, and make latents from it there.

        seeds: of the samples' noise.
        """
        with self._on_stream():
            there, noise = stored.to(self.device, non_blocking=True), None
            shape = (len(stored), *self.transform.shape(tuple(stored.shape[1:])))
            work = torch.empty(shape, dtype=torch.float32, device=self.device)
            if self.transform.draws:
                noise = device_noise.fill_(torch.empty_like(work), seeds)
            latents = self.transform(there, noise, work).to(self.transform.dtype).contiguous()
            event = None if self._stream is None else self._stream.record_event()
        return Arriving(latents, event)

    def send_plain(self, tensor: torch.Tensor) -> Arriving:
        """Copy a tensor to the device."""
        with self._on_stream():
            there = tensor.to(self.device, non_blocking=True)
            event = None if self._stream is None else self._stream.record_event()
        return Arriving(there, event)

    def arrange(self, arriving: Arriving, layout: str) -> Arriving:
        """Return them after the work that makes them."""
        with self._on_stream():
            latents = arranged(arriving.latents, layout).contiguous()
            event = None if self._stream is None else self._stream.record_event()
        return replace(arriving, latents=latents, event=event)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        if self._stream is None:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._stream)  # also makes its device the current one


class _DeviceBatch:
    def __init__(
        self, target: DeviceTarget, num_samples: int, stored_shape: tuple[int, ...]
    ) -> None:
        self._target, self._transform = target, target.transform
        self._stored = target.empty((num_samples, *stored_shape), self._transform.stored_dtype)
        self._seeds = [0] * num_samples

    def rows(self, where: Sequence[int]) -> list[torch.Tensor]:
        return [self._stored[n] for n in where]

    def done(
        self,
        rows: Sequence[torch.Tensor],  # noqa: ARG002 - they are where they shall be
        where: Sequence[int],
        keys: Sequence[str],
        visits: Sequence[int],
    ) -> None:
        for n, key, visit in zip(where, keys, visits, strict=True):
            self._seeds[n] = self._transform.noise_seed(key, visit)

    def finish(self) -> Arriving:
        return self._target.send(self._stored, self._seeds)
