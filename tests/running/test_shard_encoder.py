"""Batches of a shard: which rows they hold, what fills holes, what a failure costs, what is released."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from latentcache.config.sections import QualityConfig
from latentcache.core.records import Bucket, Clip, PictureFacts, Shard
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders.batching import AUTO_CLIPS, AUTO_PIXELS, Batching, batches
from latentcache.errors import ClipError
from latentcache.running.quality_gate import Gate
from latentcache.running.shard_encoder import Encoded, ShardEncoder
from latentcache.running.transfer import CudaTransfer, HostTransfer, Staging
from tests.tools.synthetic import make_spec

BUCKET = Bucket(frames=1, height=8, width=8)


class Means:
    """Encodes a clip to the mean of its pixels, everywhere; refuses clips of one grey level."""

    def __init__(self, refused: int | None = None) -> None:
        self.spec = make_spec("float32", stored="mean")
        self.sizes: list[int] = []
        self._refused = refused

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels_BTHWC))
        means = pixels_BTHWC.float().mean((1, 2, 3, 4))
        if self._refused in means.tolist():
            raise ClipError("non_finite", "refused")
        return means.view(-1, 1, 1, 1, 1).expand(-1, self.spec.channels, 1, 1, 1).clone()

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@dataclass
class Pool:
    """Counts buffers that are out."""

    out: set[int] = field(default_factory=set)

    def give_back(self, buffer: Any) -> None:
        self.out.remove(buffer)

    def decoded(self, row: int) -> Future[DecodedClip]:
        future: Future[DecodedClip] = Future()
        if row % 5 == 3:
            future.set_exception(ClipError("corrupt", "damaged"))
            return future
        self.out.add(row)
        level = np.full((1, 8, 8, 3), row + 1, np.uint8)
        picture = PictureFacts(
            source_fps=None,
            display_height=8,
            display_width=8,
            interlaced=False,
            transfer="SDR",
            resized_height=8,
            resized_width=8,
            crop_top=0,
            crop_left=0,
        )
        clip = DecodedClip(
            pixels=level,
            start_s=0.0,
            end_s=1.0,
            source_height=8,
            source_width=8,
            picture=picture,
            decoder="x",
            decode_s=0.5,
            fetch_s=0.25,
            frame_numbers=(0,),
            buffer=row,  # type: ignore[arg-type]
            pool=self,  # type: ignore[arg-type]
        )
        future.set_result(clip)
        return future


class Later(HostTransfer):
    """Has a batch under way while the next one is begun, as a GPU does."""

    depth = 1
    pinned = False

    def __init__(self) -> None:
        self.log: list[str] = []

    def to_encoder(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self.log.append("begun")
        return pixels_BTHWC.clone()  # the staging buffer is used again

    def to_host(self, stored: torch.Tensor) -> Callable[[], torch.Tensor]:
        def wait() -> torch.Tensor:
            self.log.append("waited")
            return stored

        return wait


def shard_of(num: int, retired: frozenset[int] = frozenset()) -> Shard:
    clips = [
        Clip(
            key=str(row),
            source="s",
            url="/s",
            kind="image",
            identity="i",
            start=0,
            frames=1,
            fps=None,
            height=8,
            width=8,
        )
        for row in range(num)
    ]
    return Shard(bucket=BUCKET, index=1, clips=clips, retired=retired)


def encode(
    encoder: Means,
    batch: int,
    *,
    num: int = 7,
    transfer: HostTransfer | None = None,
    retired: frozenset[int] = frozenset(),
) -> tuple[Encoded, list[int]]:
    pool, done = Pool(), []
    shards = ShardEncoder(
        encoder,
        Batching(batch=batch),
        Gate(encoder, QualityConfig(every=0)),
        transfer or HostTransfer(),
        shard_clips=num,
        on_clip=lambda: done.append(1),
    )
    futures = [None if row in retired else pool.decoded(row) for row in range(num)]
    found = shards.encode(shard_of(num, retired), futures)
    assert not pool.out
    assert len(done) == num
    return found, [-1 if row is None else int(row.flat[0]) for row in found.rows]


EXPECTED = [1, 2, 3, -1, 5, 6, 7]


@pytest.mark.parametrize("transfer", [HostTransfer, Later])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_every_row_gets_its_own_latent_in_any_batch(
    batch: int, transfer: type[HostTransfer]
) -> None:
    encoder = Means()
    found, values = encode(encoder, batch, transfer=transfer())
    assert values == EXPECTED
    assert [result.reason for result in found.results] == [None] * 3 + ["corrupt"] + [None] * 3
    assert [result.decode_s for result in found.results] == [0.5] * 3 + [0.0] + [0.5] * 3


def test_a_batch_has_its_size_whatever_fails_or_is_retired_in_it() -> None:
    sizes = []
    for retired in (frozenset[int](), frozenset({0, 5})):
        encoder = Means()
        _, values = encode(encoder, 3, retired=retired)
        sizes.append(encoder.sizes)
        assert values == [-1 if row in retired else EXPECTED[row] for row in range(7)]
    assert sizes == [[3, 3, 1]] * 2


def test_a_batch_of_which_nothing_is_left_is_not_encoded() -> None:
    encoder = Means()
    encode(encoder, 2, retired=frozenset({2, 4, 5}))
    assert encoder.sizes == [2, 1]


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_clip_that_the_encoder_refuses_costs_its_row_alone(batch: int) -> None:
    found, values = encode(Means(refused=5), batch)
    assert values == [1, 2, 3, -1, -1, 6, 7]
    assert found.results[4].reason == "non_finite"
    assert found.results[4].start_s == 0.0


def test_the_next_batch_is_begun_before_one_is_waited_for() -> None:
    transfer = Later()
    encode(Means(), 2, transfer=transfer, num=6)
    assert transfer.log == ["begun", "begun", "waited", "begun", "waited", "waited"]


def test_buffers_come_back_where_an_encoder_breaks() -> None:
    class Broken(Means):
        def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
            raise MemoryError("no room")

    for batch in (1, 3):
        pool = Pool()
        encoder = Broken()
        gate = Gate(encoder, QualityConfig(every=0))
        batching, transfer = Batching(batch=batch), HostTransfer()
        shards = ShardEncoder(
            encoder, batching, gate, transfer, shard_clips=3, on_clip=lambda: None
        )
        futures = [pool.decoded(row) for row in range(3)]
        with pytest.raises(MemoryError, match="no room"):
            shards.encode(shard_of(3), futures)
        left = {future.result().buffer for future in futures if future is not None}
        assert pool.out == left  # what was not taken, the worker abandons


def test_how_far_a_batch_is_from_single_clips_is_measured_for_the_first_rows() -> None:
    encoder = Means()
    shards = ShardEncoder(
        encoder,
        Batching(batch=2),
        Gate(encoder, QualityConfig(every=0)),
        HostTransfer(),
        shard_clips=3,
        on_clip=lambda: None,
    )
    pool = Pool()
    first = Shard(bucket=BUCKET, index=0, clips=shard_of(3).clips)
    shards.encode(first, [pool.decoded(row) for row in range(3)])
    assert encoder.sizes == [2, 1, 1, 1]  # both of the batch by themselves, then the last one


class Uneven(Means):
    """Gives latents of more than one value, so that they can be compared."""

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels_BTHWC) + torch.arange(2)


class Counting(HostTransfer):
    """Counts how often memory is given back."""

    given = 0

    def give_back(self) -> None:
        self.given += 1


@pytest.mark.parametrize(("index", "batch", "expected"), [(1, 1, 0), (0, 1, 0), (0, 2, 3)])
@pytest.mark.parametrize("every", [0, 4])
def test_memory_is_given_back_after_comparisons_alone(
    index: int, batch: int, expected: int, every: int
) -> None:
    encoder, transfer, pool = Uneven(), Counting(), Pool()
    gate = Gate(encoder, QualityConfig(every=every))
    shards = ShardEncoder(
        encoder, Batching(batch=batch), gate, transfer, shard_clips=12, on_clip=lambda: None
    )
    shard = Shard(bucket=BUCKET, index=index, clips=shard_of(12).clips)
    shards.encode(shard, [pool.decoded(row) for row in range(12)])
    assert gate.num_compared == min(every, 1)  # then it is known that this encoder cannot decode
    assert transfer.given == max(expected, gate.num_compared)


def a_cuda_transfer(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int) -> list[str]:
    """Give back on a GPU of 80 bytes; returns what was called."""
    calls: list[str] = []
    monkeypatch.setattr("latentcache.running.transfer.OWN_BYTES", 2)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    CudaTransfer(torch.device("cuda"), takes_device_pixels=True).give_back()
    return calls


def test_a_gpu_s_memory_is_given_back_to_a_neighbour_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_cuda_transfer(monkeypatch, free=30, reserved=48) == []
    assert a_cuda_transfer(monkeypatch, free=10, reserved=48) == ["emptied"]


def test_auto_takes_many_small_images_and_one_video() -> None:
    batching = Batching(batch="auto")
    sizes = {256: AUTO_CLIPS, 512: AUTO_PIXELS // 512**2, 2048: 1}
    for side, expected in sizes.items():
        assert batching.clips_at_once(Bucket(frames=1, height=side, width=side)) == expected
    assert batching.clips_at_once(Bucket(frames=81, height=480, width=832)) == 1


def test_batches_cover_a_shard_once_and_in_order() -> None:
    for num in range(9):
        for at_once in (1, 2, 3, 20):
            assert [row for rows in batches(num, at_once) for row in rows] == list(range(num))


def test_slots_are_used_in_turn_and_grow() -> None:
    staging = Staging(2, pinned=False)
    one, two, three = (staging.take((n, 2)) for n in (1, 2, 3))
    assert one.data_ptr() != two.data_ptr()
    assert three.shape == (3, 2)
    assert staging.take((1, 2)).data_ptr() == two.data_ptr()
