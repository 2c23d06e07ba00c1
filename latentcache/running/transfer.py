"""How pixels reach the encoder and latents leave it, so that a GPU waits for neither; and when it encodes.

On a GPU, pixels lie in pinned memory and are copied by a stream of their own, and latents are copied back
while the next batch is encoded. On a CPU nothing is copied that need not be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from latentcache.encoders.protocol import Encoder
from latentcache.encoders.tiled import TiledEncoder

#: Says when the device got to a place in what it was given, in `time.perf_counter`'s seconds; waits for it.
Mark = Callable[[], float]


class HostClock:
    """Of a device that has done what it was given when the call returns."""

    def mark(self) -> Mark:
        """Return when the device gets to here."""
        now_s = time.perf_counter()
        return lambda: now_s


class CudaClock:
    """Of a GPU's current stream: it runs behind the thread that gives it work.

    Its own times count from an event that the thread waited for, so they can be compared with the thread's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = self._recorded()
        self._base.synchronize()
        self._base_s = time.perf_counter()

    def mark(self) -> Mark:
        """Return when the stream gets to here."""
        event = self._recorded()

        def reached_s() -> float:
            event.synchronize()
            return self._base_s + float(self._base.elapsed_time(event)) / 1e3

        return reached_s

    def _recorded(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


Clock = HostClock | CudaClock


class Staging:
    """Buffers for the pixels of batches, used in turn; each grows to the largest batch.

    num_slots: how many batches can be under way. A slot is used again after as many batches.
    """

    def __init__(self, num_slots: int, *, pinned: bool) -> None:
        self._flat = [torch.empty(0, dtype=torch.uint8) for _ in range(num_slots)]
        self._pinned = pinned
        self._next = 0

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return uint8 memory of a shape, with what was in it before."""
        slot, count = self._next, math.prod(shape)
        self._next = (slot + 1) % len(self._flat)
        if len(self._flat[slot]) < count:
            self._flat[slot] = torch.empty(count, dtype=torch.uint8, pin_memory=self._pinned)
        return self._flat[slot][:count].view(shape)


#: What CUDA and its libraries take for this process at most, beside torch's own. What else is taken of a
#: GPU is a neighbour's.
OWN_BYTES = 3 << 29


class HostTransfer:
    """Of an encoder on the CPU: pixels and latents are where they are needed.

    depth: batches that may be under way while the next one is begun.
    """

    depth = 0
    pinned = False

    def clock(self) -> Clock:
        """Return what says when the encoder's device begins and ends."""
        return HostClock()

    def give_back(self) -> None:
        """Nothing was kept that others could use."""

    def to_encoder(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return the pixels where the encoder takes them."""
        return pixels_BTHWC

    def to_host(self, stored: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy latents to the CPU; the function waits for them and returns them."""
        return stored.cpu


class CudaTransfer:
    """Of an encoder on a GPU, from pinned memory and to it. takes_device_pixels: whether it does."""

    depth = 1
    pinned = True

    def __init__(self, device: torch.device, *, takes_device_pixels: bool) -> None:
        self._device = device
        self._takes_device_pixels = takes_device_pixels
        self._upload = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def clock(self) -> Clock:
        """Return what says when the GPU begins and ends; waits for what it was given before."""
        return CudaClock(self._device)

    def give_back(self) -> None:
        """Let other processes on this GPU have what a comparison took, which torch keeps for the next one.

        By itself a worker keeps it: to take it again takes time.
        """
        free, total = torch.cuda.mem_get_info(self._device)
        if total - free - torch.cuda.memory_reserved(self._device) > OWN_BYTES:
            torch.cuda.empty_cache()

    def to_encoder(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return the pixels on the GPU, where which waits for them, and the caller does not."""
        if not self._takes_device_pixels:
            return pixels_BTHWC
        encoding = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._upload):
            pixels = pixels_BTHWC.to(self._device, non_blocking=True)
        encoding.wait_stream(self._upload)
        pixels.record_stream(encoding)
        return pixels

    def to_host(self, stored: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy latents to the CPU; the function waits for them and returns a copy of its own."""
        host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
        host.copy_(stored, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self._device))

        def wait() -> torch.Tensor:
            copied.synchronize()
            return (
                host.clone()
            )  # pinned memory is scarce, and a shard's rows are kept until it is written

        return wait


Transfer = HostTransfer | CudaTransfer


def transfer_for(encoder: Encoder, device: torch.device) -> Transfer:
    """Return how pixels and latents travel for an encoder on its device."""
    if device.type != "cuda":
        return HostTransfer()
    inner = encoder.untiled if isinstance(encoder, TiledEncoder) else encoder
    takes = getattr(inner, "takes_device_pixels", False)
    return CudaTransfer(device, takes_device_pixels=takes)
