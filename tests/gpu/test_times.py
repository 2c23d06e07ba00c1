"""What a shard's time is booked as on a GPU: by its own clock, and not by the thread that gives it work."""

from __future__ import annotations

import time
from concurrent.futures import Future

import pytest
import torch

from latentcache.config.sections import QualityConfig
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders.batching import Batching
from latentcache.running.quality_gate import Gate
from latentcache.running.shard_encoder import ShardEncoder
from latentcache.running.transfer import CudaClock, CudaTransfer
from tests.running.test_shard_encoder import Means, Pool, shard_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"),
]
CUDA = torch.device("cuda")
#: Of a GPU at 1 to 2 GHz, 0.05 to 0.1 s: long beside all that a thread does for a clip.
CYCLES = 100_000_000
NUM = 20


class Asleep(Means):
    """Keeps the GPU busy for a while, and returns at once."""

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        means = pixels_BTHWC.float().mean((1, 2, 3, 4))
        return means.view(-1, 1, 1, 1, 1).expand(-1, self.spec.channels, 1, 1, 1).clone()

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8, device=CUDA).cpu()


class Decoding(Future[DecodedClip]):
    """A clip whose decoding is waited for."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self._wait_s = wait_s

    def result(self, timeout: float | None = None) -> DecodedClip:
        time.sleep(self._wait_s)
        return Pool().decoded(0).result()


def asleep_s() -> float:
    """Return what encoding takes, by the clock; the first time is longer."""
    for _ in range(3):
        clock = CudaClock(CUDA)
        begins = clock.mark()
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        ends = clock.mark()
        found = ends() - begins()
    return found


def test_marks_of_a_gpu_are_on_the_clock_of_the_thread() -> None:
    asleep_s()
    clock, started_s = CudaClock(CUDA), time.perf_counter()
    begins = clock.mark()
    torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
    ends, given_s = clock.mark(), time.perf_counter()
    torch.cuda.synchronize(CUDA)
    done_s = time.perf_counter()
    assert begins() == pytest.approx(started_s, abs=0.01)
    assert ends() == pytest.approx(done_s, abs=0.01)
    assert given_s < ends()


@pytest.mark.parametrize("every", [0, 4])
@pytest.mark.parametrize("slower", [0.2, 1.2])
def test_a_gpu_that_encodes_is_not_waiting_nor_comparing(slower: float, every: int) -> None:
    """slower: how long a clip is decoded, beside how long it is encoded."""
    each_s = asleep_s()
    encoder = Asleep()
    gate = Gate(encoder, QualityConfig(every=every))
    transfer = CudaTransfer(CUDA, takes_device_pixels=True)
    shards = ShardEncoder(
        encoder, Batching(batch=1), gate, transfer, shard_clips=NUM, on_clip=lambda: None
    )
    started = time.perf_counter()
    found = shards.encode(shard_of(NUM), [Decoding(slower * each_s) for _ in range(NUM)])
    wall_s = time.perf_counter() - started
    encode_s = sum(result.encode_s for result in found.results)
    assert encode_s == pytest.approx(NUM * each_s, rel=0.5)  # a GPU's frequency changes
    assert gate.busy_s <= found.compare_s < max(1, gate.num_compared) * each_s / 2
    if not every:  # else the GPU is idle after a comparison
        assert found.wait_s < NUM * max(0.3, slower - 0.7) * each_s
    assert encode_s + found.wait_s + found.compare_s == pytest.approx(wall_s, rel=0.2)
