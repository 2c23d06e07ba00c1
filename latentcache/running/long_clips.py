"""Long clips: decoded and encoded in groups of frames, so that memory does not grow with their length.

The bits are those of the whole clip, so nothing says which clips are long but this file. Only encoders with
`stream` take them in groups; others get the clip whole, as ever.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from latentcache.config.sections import Config
from latentcache.core.dtypes import Array
from latentcache.core.records import RETIRED, Bucket, Clip, ClipResult, Shard
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.encoders.batching import batching_of
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import to_stored
from latentcache.encoders.streaming import can_stream, encode_stream
from latentcache.running.abandoning import abandon
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.frame_check import check_frame_numbers
from latentcache.running.shard_encoder import Encoded, OnPixels

#: Clips of more bytes of pixels than this are long: 166 frames of 480x832.
LONG_BYTES = 192 << 20
#: What is decoded together of a long clip. Each piece begins with a seek to the key frame before it.
PIECE_BYTES = 32 << 20

#: Of a clip, in order; None once one was taken.
Pieces = list[Future[DecodedClip] | None]


def is_long(config: Config, encoder: Encoder | None, bucket: Bucket) -> bool:
    """Tell whether clips of a bucket are encoded in groups of frames.

    Not where several are encoded at once, nor where the frames of a part do not follow from its place.
    """
    return (
        encoder is not None
        and can_stream(encoder)
        and _frame_bytes(bucket) * bucket.frames > LONG_BYTES
        and batching_of(config.encoder).clips_at_once(bucket) == 1
        and config.clips.sampling != "spread"
    )


def decoded_bytes(config: Config, encoder: Encoder | None, bucket: Bucket) -> int:
    """Return the bytes of a decoding buffer for clips of a bucket."""
    frames = _piece_frames(bucket) if is_long(config, encoder, bucket) else bucket.frames
    return _frame_bytes(bucket) * frames


def _frame_bytes(bucket: Bucket) -> int:
    return 3 * bucket.height * bucket.width


def _piece_frames(bucket: Bucket) -> int:
    return max(1, PIECE_BYTES // _frame_bytes(bucket))


def decode_pieces(pool: DecodePool, clip: Clip) -> Pieces:
    """Ask for a clip in pieces, in order. They sample the frames that the whole clip samples."""
    size = _piece_frames(Bucket(frames=clip.frames, height=clip.height, width=clip.width))
    return [
        pool.decode(replace(clip, start=clip.start + first, frames=min(size, clip.frames - first)))
        for first in range(0, clip.frames, size)
    ]


@dataclass
class _Facts:
    """What decoding says of a clip, from its pieces."""

    first: DecodedClip | None = None
    end_s: float = 0.0
    decode_s: float = 0.0
    fetch_s: float = 0.0
    wait_s: float = 0.0
    frame_numbers: list[int] = field(default_factory=list)

    def add(self, piece: DecodedClip, wait_s: float) -> None:
        self.first = self.first or piece
        self.end_s = piece.end_s
        self.frame_numbers += piece.frame_numbers
        self.decode_s += piece.decode_s
        self.fetch_s += piece.fetch_s
        self.wait_s += wait_s

    def result(self, encode_s: float) -> ClipResult:
        if self.first is None:
            return ClipResult()
        return ClipResult(
            start_s=self.first.start_s,
            end_s=self.end_s,
            source_height=self.first.source_height,
            source_width=self.first.source_width,
            picture=self.first.picture,
            decoder=self.first.decoder,
            decode_s=self.decode_s,
            fetch_s=self.fetch_s,
            encode_s=encode_s,
        )


class LongShard:
    """The clips of a shard whose bucket is long. on_clip: called after each clip, encoded or failed."""

    def __init__(
        self,
        encoder: Encoder,
        shard: Shard,
        on_clip: Callable[[], object],
        on_pixels: OnPixels | None = None,
    ) -> None:
        assert can_stream(encoder)
        self._encoder, self._shard, self._on_clip = encoder, shard, on_clip
        self._on_pixels = on_pixels

    def encode(self, pieces: Sequence[Pieces | None]) -> Encoded:
        """Encode the clips. pieces: of each, as `decode_pieces` gives them; None for a retired row."""
        found = Encoded()
        try:
            for number, of_clip in enumerate(pieces):
                facts = _Facts()
                row, result = (
                    (None, RETIRED) if of_clip is None else self._clip(number, of_clip, facts)
                )
                found.rows.append(row)
                found.results.append(result)
                found.wait_s += facts.wait_s
                self._on_clip()
        finally:
            for of_clip in pieces:
                _abandon(of_clip or [])
        return found

    def _clip(self, number: int, pieces: Pieces, facts: _Facts) -> tuple[Array | None, ClipResult]:
        started, clip = time.perf_counter(), self._shard.clips[number]
        look = None if self._on_pixels is None else partial(self._on_pixels, number)
        shape = (clip.frames, clip.height, clip.width)
        row = failure = None
        try:
            with contextlib.closing(_pixels(pieces, facts, look)) as groups:
                encoded = encode_stream(self._encoder, groups, shape)
            check_frame_numbers(clip, facts.frame_numbers)
            row = to_stored(encoded, clip.key, self._encoder.spec)
        except OF_CLIP as error:
            failure = error
        finally:
            _abandon(pieces)
        result = facts.result(time.perf_counter() - started - facts.wait_s)
        if failure is not None:
            result = replace(result, reason=failure.reason, message=str(failure))
        return row, result


def _pixels(
    pieces: Pieces, facts: _Facts, look: Callable[[int, Array], object] | None
) -> Generator[torch.Tensor, None, None]:
    """Yield the pixels of each piece, [1, T, H, W, 3]; they are good until the next one is asked for.

    look: is shown each before, with the number of its first frame.
    """
    for number, future in enumerate(pieces):
        assert future is not None
        waiting = time.perf_counter()
        piece = future.result()
        pieces[number] = None
        try:
            if look is not None:
                look(len(facts.frame_numbers), piece.pixels)
            facts.add(piece, time.perf_counter() - waiting)
            yield torch.from_numpy(piece.pixels)[None]
        finally:
            piece.release()


def _abandon(pieces: Pieces) -> None:
    """Release what is left of a clip, once."""
    abandon(pieces)
    pieces.clear()
