"""One shard through the encoder, batch by batch; all of it on the encoder's one thread.

A batch holds neighbouring rows. A row that is retired or could not be decoded is black in it, so that the
rows beside it get the same bits in every run. On a GPU the next batch is begun before one is waited for.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from latentcache.core.dtypes import Array
from latentcache.core.records import RETIRED, ClipResult, Shard
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders import out_of_memory
from latentcache.encoders.batching import Batching, batches
from latentcache.encoders.plain import kernel_error
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import checked, reduced
from latentcache.encoders.tiled import tiling_error
from latentcache.errors import ClipError
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.frame_check import check_frame_numbers
from latentcache.running.quality_gate import Gate
from latentcache.running.shard_times import RowTimes, ShardTimes
from latentcache.running.transfer import Clock, Mark, Staging, Transfer

Futures = list[Future[DecodedClip] | None]
#: Is shown decoded pixels of a clip before they are encoded, as (row, number of the first frame,
#: uint8 [T, H, W, 3]), on the encoder's thread. They are good until it returns.
OnPixels = Callable[[int, int, Array], object]


@dataclass(kw_only=True)
class Encoded:
    """What became of a shard. Seconds in which nothing was encoded: waiting for pixels, and comparing."""

    rows: list[Array | None] = field(default_factory=list)
    results: list[ClipResult] = field(default_factory=list)
    kernel_errors: list[float] = field(default_factory=list)
    wait_s: float = 0.0
    compare_s: float = 0.0


@dataclass(kw_only=True)
class _Batch:
    """Rows that are encoded at once. Their clips by their place in the batch, pixels on the CPU.

    failed: why a clip has no latent. encoded: the encoder's output by place; stored: waits for what is
    stored. marks: where its encoding begins and ends. held: decoded clips whose buffer is in use.
    """

    rows: range
    pixels: torch.Tensor
    decoded: dict[int, DecodedClip]
    failed: dict[int, ClipResult]
    held: list[DecodedClip]
    encoded: dict[int, torch.Tensor] = field(default_factory=dict)
    stored: dict[int, Callable[[], torch.Tensor]] = field(default_factory=dict)
    marks: list[tuple[Mark, Mark]] = field(default_factory=list)

    def release(self) -> None:
        """Give buffers back."""
        while self.held:
            self.held.pop().release()


class ShardEncoder:
    """Encodes shards one after the other. on_clip: called as each clip is done, or failed."""

    def __init__(
        self,
        encoder: Encoder,
        batching: Batching,
        gate: Gate,
        transfer: Transfer,
        *,
        shard_clips: int,
        on_clip: Callable[[], None],
    ) -> None:
        self._encoder = encoder
        self._batching = batching
        self._gate = gate
        self._transfer = transfer
        self._staging = Staging(transfer.depth + 1, pinned=transfer.pinned)
        self._shard_clips = shard_clips
        self._on_clip = on_clip

    def encode(self, shard: Shard, futures: Futures, on_pixels: OnPixels | None = None) -> Encoded:
        """Encode a shard's clips; of those taken, `futures` then has None. A bad clip costs its row."""
        found, times, under_way = Encoded(), ShardTimes(), deque[_Batch]()
        clock = self._transfer.clock()
        try:
            at_once = self._batching.clips_at_once(shard.bucket)
            for rows in batches(len(shard.clips), at_once):
                under_way.append(self._gather(shard, rows, futures, times, on_pixels))
                self._launch(shard, under_way[-1], clock)
                while len(under_way) > self._transfer.depth:
                    self._finish(shard, under_way[0], found, times)
                    under_way.popleft()
            while under_way:
                self._finish(shard, under_way[0], found, times)
                under_way.popleft()
        finally:
            for batch in under_way:
                batch.release()
        self._book(found, times)
        return found

    def _book(self, found: Encoded, times: ShardTimes) -> None:
        """Note what the time of a shard went to, once it is known when its last batch was encoded."""
        spent = times.seconds()
        found.wait_s, found.compare_s = spent.wait_s, spent.compare_s
        self._gate.busy_s += spent.gate_s
        for row, encode_s in spent.encode_s.items():
            found.results[row] = replace(found.results[row], encode_s=encode_s)

    def _gather(
        self,
        shard: Shard,
        rows: range,
        futures: Futures,
        times: ShardTimes,
        on_pixels: OnPixels | None,
    ) -> _Batch:
        """Wait for the pixels of a batch. On a CPU a single clip stays where it was decoded."""
        bucket = shard.bucket
        shape = (len(rows), bucket.frames, bucket.height, bucket.width, 3)
        in_place = len(rows) == 1 and not self._transfer.pinned
        pixels = torch.empty(0, dtype=torch.uint8) if in_place else self._staging.take(shape)
        batch = _Batch(rows=rows, pixels=pixels, decoded={}, failed={}, held=[])
        for place, row in enumerate(rows):
            started = time.perf_counter()
            try:
                clip = _taken(futures, row)
            except OF_CLIP as error:
                batch.failed[place] = ClipResult(reason=error.reason, message=str(error))
                clip = None
            else:
                times.waits.append((started, time.perf_counter()))
            if clip is None:
                batch.failed.setdefault(place, RETIRED)
                if not in_place:
                    batch.pixels[place].zero_()
                continue
            batch.decoded[place] = clip
            if on_pixels is not None:
                on_pixels(row, 0, clip.pixels)
            if in_place:
                batch.pixels = torch.from_numpy(clip.pixels)[None]
                batch.held.append(clip)
            else:
                try:
                    batch.pixels[place].copy_(torch.from_numpy(clip.pixels))
                finally:
                    clip.release()
        return batch

    def _launch(self, shard: Shard, batch: _Batch, clock: Clock) -> None:
        """Begin to encode a batch, unless there is nothing in it."""
        if not batch.decoded:
            return
        try:
            self._encode(shard, batch, list(batch.decoded), batch.pixels, clock)
        except OF_CLIP as error:
            if len(batch.rows) == 1:
                batch.failed[0] = _failed(error, batch.decoded[0])
            else:
                self._encode_each(shard, batch, clock)

    def _encode_each(self, shard: Shard, batch: _Batch, clock: Clock) -> None:
        """Find the clips that an encoder refuses: each is encoded in a batch that is black otherwise."""
        for place in batch.decoded:
            pixels = torch.zeros_like(batch.pixels)
            pixels[place] = batch.pixels[place]
            try:
                self._encode(shard, batch, [place], pixels, clock)
            except OF_CLIP as error:
                batch.failed[place] = _failed(error, batch.decoded[place])

    def _encode(
        self,
        shard: Shard,
        batch: _Batch,
        places: Sequence[int],
        pixels: torch.Tensor,
        clock: Clock,
    ) -> None:
        """Begin to encode; of what comes out, `places` are kept."""
        keys = [shard.clips[row].key for row in batch.rows]
        pixels = self._transfer.to_encoder(pixels)
        begins = clock.mark()
        try:
            encoded = out_of_memory.encode(self._encoder, pixels)
            stored = reduced(encoded, keys, self._encoder.spec)
        finally:
            batch.marks.append((begins, clock.mark()))
        wait = functools.cache(self._transfer.to_host(stored))
        for place in places:
            batch.encoded[place] = encoded[place : place + 1]
            batch.stored[place] = lambda place=place: wait()[place]  # type: ignore[misc]

    def _finish(self, shard: Shard, batch: _Batch, found: Encoded, times: ShardTimes) -> None:
        """Wait for a batch's latents; check, compare and note them row by row."""
        encodings = [(begins(), ends()) for begins, ends in batch.marks]
        times.encodings += encodings
        share_s = sum(end - begin for begin, end in encodings) / max(1, len(batch.decoded))
        for place, row in enumerate(batch.rows):
            latent: Array | None = None
            result = batch.failed.get(place)
            if place in batch.decoded:
                spent = RowTimes(encoding_s=share_s, begins_s=time.perf_counter())
                if result is None:
                    latent, result = self._row(shard, batch, place, found, spent)
                spent.ends_s = time.perf_counter()
                times.rows[row] = spent
            assert result is not None
            found.rows.append(latent)
            found.results.append(result)
            self._on_clip()
        batch.release()

    def _row(
        self, shard: Shard, batch: _Batch, place: int, found: Encoded, spent: RowTimes
    ) -> tuple[Array | None, ClipResult]:
        """Return a clip's latent as it is stored, and what is known of it."""
        row, clip = batch.rows[place], batch.decoded[place]
        key, pixels = shard.clips[row].key, batch.pixels[place : place + 1]
        encoded, spec = batch.encoded[place], self._encoder.spec
        latent: Array | None = None
        error = psnr = failure = None
        try:
            check_frame_numbers(shard.clips[row], clip.frame_numbers)
            latent = checked(batch.stored[place](), spec)
            error = tiling_error(self._encoder, pixels, encoded, shard=shard.index, row=row)
            spent.compares_s = time.perf_counter()
            number = shard.index * self._shard_clips + row
            psnr = self._look(latent, pixels[0], key, number, spent)
            changed = kernel_error(
                self._encoder, pixels, encoded, batch=len(batch.rows), shard=shard.index, row=row
            )
            found.kernel_errors += [] if changed is None else [changed]
            if error or spent.gate or changed is not None:
                self._transfer.give_back()
        except OF_CLIP as clip_error:
            failure = clip_error
        return latent, ClipResult(
            reason=failure.reason if failure else None,
            message=str(failure) if failure else None,
            **_facts(clip),
            tiling_error=error,
            psnr=psnr,
        )

    def _look(
        self, latent: Array, pixels_THWC: torch.Tensor, key: str, number: int, spent: RowTimes
    ) -> float | None:
        """Let the quality gate look at a clip; returns what it gives."""
        started, before = time.perf_counter(), self._gate.num_compared
        psnr = self._gate.look(latent, pixels_THWC, key=key, number=number)
        if self._gate.num_compared > before:
            spent.gate = started, time.perf_counter()
        return psnr


def _facts(clip: DecodedClip) -> dict[str, Any]:
    """Return what decoding has found out of a clip."""
    names = (
        "start_s", "end_s", "source_height", "source_width", "picture", "decoder", "decode_s", "fetch_s",
    )  # fmt: skip
    return {name: getattr(clip, name) for name in names}


def _failed(error: ClipError, clip: DecodedClip) -> ClipResult:
    return ClipResult(reason=error.reason, message=str(error), **_facts(clip))


def _taken(futures: Futures, row: int) -> DecodedClip | None:
    """Return a decoded clip, which is then the caller's to release; None of a retired row."""
    future = futures[row]
    if future is None:
        return None
    decoded = future.result()
    futures[row] = None
    return decoded
