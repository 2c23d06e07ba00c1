"""What a worker does with its clips on its device, done with noise: no source is read, nothing stored."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import torch

from latentcache.config.sections import QualityConfig
from latentcache.core.records import Bucket, Clip, PictureFacts, Shard
from latentcache.decoders.frames import Frame
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.encoders.batching import Batching, batching_of
from latentcache.encoders.protocol import Encoder
from latentcache.running.long_clips import LongShard, decode_pieces, is_long
from latentcache.running.quality_gate import Gate
from latentcache.running.shard_encoder import Futures, ShardEncoder
from latentcache.running.transfer import transfer_for
from latentcache.running.worker import WorkerSpec, build_encoder

#: Batches of a bucket: one is begun while the one before it is compared.
NUM_BATCHES = 2
#: A gate that compares every clip and waits for more than there are judges none of them.
NEVER = 1 << 30


def rehearse(spec: WorkerSpec, device: torch.device) -> None:
    """Encode the first clips of the buckets that take the most memory, and compare them as a worker does.

    Raises what building the encoder raises, and EncoderError where there is no memory for a batch.
    """
    encoder = build_encoder(spec, device)
    batching = batching_of(spec.config.encoder)
    quality = QualityConfig(every=spec.config.quality.every, judged_clips=NEVER)
    shards = ShardEncoder(
        encoder,
        batching,
        Gate(encoder, quality),
        transfer_for(encoder, device),
        shard_clips=spec.manifest.shard_clips,
        on_clip=lambda: None,
    )
    buckets = [Bucket.parse(name) for name in spec.manifest.layouts()]
    for bucket in largest(buckets, batching):
        pool = cast("DecodePool", _Noise())
        if is_long(spec.config, encoder, bucket):
            _rehearse_long(encoder, _shard(bucket, 1), pool)
            continue
        num_clips = NUM_BATCHES * batching.clips_at_once(bucket)
        shard = _shard(bucket, min(num_clips, spec.manifest.shard_clips))
        futures: Futures = [pool.decode(clip) for clip in shard.clips]
        shards.encode(shard, futures)


def largest(buckets: Iterable[Bucket], batching: Batching) -> list[Bucket]:
    """Return the bucket of the largest clip, which is compared, and that of the largest batch."""

    def pixels(bucket: Bucket) -> int:
        return bucket.frames * bucket.height * bucket.width

    found = sorted(buckets, key=pixels)
    batch = max(found, key=lambda bucket: pixels(bucket) * batching.clips_at_once(bucket))
    return list(dict.fromkeys([found[-1], batch]))


def _rehearse_long(encoder: Encoder, shard: Shard, pool: DecodePool) -> None:
    pieces = [decode_pieces(pool, clip) for clip in shard.clips]
    LongShard(encoder, shard, on_clip=lambda: None).encode(pieces)


def _shard(bucket: Bucket, num_clips: int) -> Shard:
    """Return the first shard of a bucket: of its first clips more is compared than of others."""
    clips = [
        Clip(
            key=f"noise {number}",
            source="noise",
            url="",
            kind="video",
            identity="",
            start=0,
            frames=bucket.frames,
            fps=None,
            height=bucket.height,
            width=bucket.width,
        )
        for number in range(num_clips)
    ]
    return Shard(bucket=bucket, index=0, clips=clips)


class _Noise:
    """In place of a `DecodePool`: every clip is there, and is noise; those of one shape are the same."""

    def __init__(self) -> None:
        self._of_shape: dict[tuple[int, ...], Frame] = {}

    def decode(self, clip: Clip) -> Future[DecodedClip]:
        shape = (clip.frames, clip.height, clip.width, 3)
        if shape not in self._of_shape:
            noise = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
            self._of_shape[shape] = noise
        picture = PictureFacts(
            source_fps=None,
            display_height=clip.height,
            display_width=clip.width,
            interlaced=False,
            transfer="SDR",
            resized_height=clip.height,
            resized_width=clip.width,
            crop_top=0,
            crop_left=0,
        )
        future: Future[DecodedClip] = Future()
        future.set_result(
            DecodedClip(
                pixels=self._of_shape[shape],
                start_s=0.0,
                end_s=0.0,
                source_height=clip.height,
                source_width=clip.width,
                picture=picture,
                decoder="",
                frame_numbers=range(clip.start, clip.start + clip.frames),
                decode_s=0.0,
                fetch_s=0.0,
                buffer=cast("Any", None),
                pool=cast("Any", self),
            )
        )
        return future

    def give_back(self, buffer: object) -> None:
        """Keep the noise for the next clip."""
