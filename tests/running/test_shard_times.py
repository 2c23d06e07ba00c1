"""What a shard's time is booked as where a GPU works behind the encoder's thread. Time is made up here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from latentcache.config.sections import QualityConfig
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders.batching import Batching
from latentcache.running import shard_encoder
from latentcache.running.quality_gate import Gate
from latentcache.running.shard_encoder import Encoded, ShardEncoder
from latentcache.running.shard_times import RowTimes, ShardTimes
from latentcache.running.transfer import HostTransfer
from tests.running.test_shard_encoder import Means, Pool, shard_of

ENCODE_S, COMPARE_S, NUM = 0.05, 0.01, 60


@dataclass
class Device:
    """A GPU's stream: what it is given, it does later. now_s: for the thread; free_s: when it is done."""

    now_s: float = 0.0
    free_s: float = 0.0

    def give(self, seconds: float) -> None:
        self.free_s = max(self.free_s, self.now_s) + seconds

    def wait(self, until_s: float) -> float:
        self.now_s = max(self.now_s, until_s)
        return until_s


class Slow(Means):
    def __init__(self, device: Device, refused: int | None = None) -> None:
        super().__init__(refused)
        self._device = device

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self._device.give(ENCODE_S)
        return super().encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        self._device.give(COMPARE_S)
        self._device.wait(self._device.free_s)
        return torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)


class Behind(HostTransfer):
    """Of a `Device`; also its clock."""

    depth = 1

    def __init__(self, device: Device) -> None:
        self._device = device

    def clock(self) -> Behind:  # type: ignore[override]
        return self

    def mark(self) -> Callable[[], float]:
        at_s = max(self._device.now_s, self._device.free_s)
        return lambda: self._device.wait(at_s)

    def to_encoder(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        return pixels_BTHWC.clone()

    def to_host(self, stored: torch.Tensor) -> Callable[[], torch.Tensor]:
        done_s = self._device.free_s

        def wait() -> torch.Tensor:
            self._device.wait(done_s)
            return stored

        return wait


class Decoding(Future[DecodedClip]):
    """A clip, the same each time, that is decoded when `ready_s` has come."""

    def __init__(self, device: Device, ready_s: float) -> None:
        super().__init__()
        self._device, self._ready_s = device, ready_s

    def result(self, timeout: float | None = None) -> DecodedClip:
        self._device.wait(self._ready_s)
        return Pool().decoded(0).result()


def run(
    monkeypatch: pytest.MonkeyPatch,
    decode_s: float,
    *,
    every: int = 0,
    batch: int = 1,
    refused: int | None = None,
) -> tuple[Encoded, Gate, Device]:
    """Encode a shard of which a clip is decoded every `decode_s`."""
    device = Device()
    monkeypatch.setattr(shard_encoder, "time", SimpleNamespace(perf_counter=lambda: device.now_s))
    encoder = Slow(device, refused)
    gate = Gate(encoder, QualityConfig(every=every))
    shards = ShardEncoder(
        encoder,
        Batching(batch=batch),
        gate,
        Behind(device),
        shard_clips=NUM,
        on_clip=lambda: None,
    )
    futures = [Decoding(device, (n + 1) * decode_s) for n in range(NUM)]
    return shards.encode(shard_of(NUM), list(futures)), gate, device


def encode_s(found: Encoded) -> list[float]:
    return [result.encode_s for result in found.results]


def test_a_gpu_that_encodes_while_pixels_are_waited_for_is_not_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _, device = run(monkeypatch, decode_s=0.055)
    assert encode_s(found) == pytest.approx([ENCODE_S] * NUM)
    assert found.wait_s == pytest.approx(0.055 + (NUM - 1) * 0.005)
    assert found.wait_s + sum(encode_s(found)) == pytest.approx(device.now_s)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_gpu_that_is_always_busy_waits_for_the_first_clips_alone(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    found, _, device = run(monkeypatch, decode_s=0.01, batch=batch)
    assert encode_s(found) == pytest.approx([ENCODE_S / batch] * NUM)
    assert found.wait_s == pytest.approx(0.01 * batch)
    assert found.wait_s + sum(encode_s(found)) == pytest.approx(device.now_s)


@pytest.mark.parametrize("decode_s", [0.001, 0.055, 0.2])
def test_what_the_gpu_does_before_it_compares_is_no_comparing(
    monkeypatch: pytest.MonkeyPatch, decode_s: float
) -> None:
    found, gate, device = run(monkeypatch, decode_s, every=4)
    assert gate.num_compared > NUM // 4
    assert gate.busy_s == pytest.approx(gate.num_compared * COMPARE_S)
    assert found.compare_s == pytest.approx(gate.busy_s)
    assert encode_s(found) == pytest.approx([ENCODE_S] * NUM)
    assert found.wait_s + sum(encode_s(found)) + found.compare_s == pytest.approx(device.now_s)


def test_clips_that_are_refused_have_taken_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, device = run(monkeypatch, decode_s=0.001, refused=1)
    assert {result.reason for result in found.results} == {"non_finite"}
    assert encode_s(found) == pytest.approx([ENCODE_S] * NUM)
    assert device.now_s == pytest.approx(0.001 + NUM * ENCODE_S)


def test_seconds_of_encoding_are_taken_from_whatever_overlaps_them() -> None:
    row = RowTimes(encoding_s=2.0, begins_s=3.0, compares_s=6.0, ends_s=12.0, gate=(6.0, 10.0))
    times = ShardTimes(
        encodings=[(1.0, 3.0), (5.0, 9.0), (9.0, 9.5)],
        waits=[(0.0, 2.0), (4.0, 6.0)],
        rows={7: row},
    )
    found = times.seconds()
    assert found.wait_s == 1 + 1
    assert found.encode_s == {7: 2 + 2}
    assert (found.compare_s, found.gate_s) == (12 - 9.5, 10 - 9.5)


def test_a_shard_of_which_nothing_was_encoded_has_only_waited() -> None:
    found = ShardTimes(waits=[(2.0, 3.5)]).seconds()
    assert (found.wait_s, found.encode_s, found.compare_s, found.gate_s) == (1.5, {}, 0, 0)
    assert ShardTimes().seconds().wait_s == 0


def test_on_a_cpu_the_parts_are_those_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up clock moves by 1 s each time that it is read."""
    reads = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(reads)))
    monkeypatch.setattr(shard_encoder, "time", clock)
    monkeypatch.setattr("latentcache.running.transfer.time", clock)
    pool, encoder = Pool(), Means()
    gate = Gate(encoder, QualityConfig(every=0))
    shards = ShardEncoder(
        encoder, Batching(batch=1), gate, HostTransfer(), shard_clips=1, on_clip=lambda: None
    )
    found = shards.encode(shard_of(3), [pool.decoded(row) for row in range(3)])
    assert found.wait_s == 3
    assert encode_s(found) == [2, 2, 2]  # encoding, and the row's own work before it is compared
