"""ShardWorker: everything one GPU does. Decode, encode and write overlap; memory is bounded.

Several threads call `encode_shard` at once, one a shard: while the first writes, the second encodes and
the third's clips are being decoded. One thread does all the encoding, in the order in which the shards
came, and decoding serves them in that order too, so that none waits for a buffer that a later one holds.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.core.dtypes import Array
from latentcache.core.records import RETIRED, Bucket, ClipResult, Shard, ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.encoders import out_of_memory
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import to_stored
from latentcache.encoders.tiled import tiling_error
from latentcache.errors import CacheError
from latentcache.format.commit import adopt_shard, commit_shard
from latentcache.format.manifest import Manifest, read_cache_json
from latentcache.format.shards import get_format
from latentcache.redaction import redact
from latentcache.running.abandoning import abandon
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.long_clips import (
    Encoded,
    LongShard,
    Pieces,
    decode_pieces,
    decoded_bytes,
    is_long,
)
from latentcache.running.quality_gate import Gate
from latentcache.storage.folder import Storage

#: Shards that a worker has in hand at once: one being written, one encoded, one decoded ahead.
SHARDS_IN_HAND = 3

#: Decoding processes keep this many more buffers than there are processes, if memory allows: one is
#: being encoded, and one is ready.
SPARE_BUFFERS = 2


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """All that a worker needs, as plain data that travels to any node.

    num_cpus: CPUs that this worker may use.
    """

    config: Config
    manifest: Manifest
    storage: Storage
    num_cpus: int = 1

    def start(self, device: torch.device) -> Worker:
        """Check the cache, and build the worker. Raises what `check_cache` and the encoder raise."""
        check_cache(self)
        return self.build(device)

    def build(self, device: torch.device) -> Worker:
        """Build the worker. Raises what the encoder raises."""
        return ShardWorker(self, device)


class Worker(Protocol):
    """What a runner runs on one device. clips_done: as in ShardWorker."""

    clips_done: int

    @property
    def num_steps(self) -> int:
        """Steps since the start by which work has advanced: see `latentcache.running.stall`."""
        ...

    def encode_shard(self, shard: Any) -> ShardReport:
        """Encode and commit one shard, of which the driver gives what it needs; from several threads."""
        ...

    def close(self) -> None:
        """Stop, and let go of what was started."""
        ...


def check_cache(spec: WorkerSpec) -> None:
    """Raise CacheError unless this worker sees the cache that the driver has planned.

    A folder on a disk of the driver's machine is another folder, or none, on other machines.
    """
    url = redact(spec.storage.url)
    found = read_cache_json(spec.storage).fingerprint
    if found != spec.manifest.fingerprint:
        raise CacheError(
            f"{url} is another cache on {socket.gethostname()} ({found[:12]}) than on the driver's machine "
            f"({spec.manifest.fingerprint[:12]}): give cache.url a place that all machines share."
        )


class ShardWorker:
    """Encodes shards; thread-safe. A bad clip is recorded in its row; anything else is raised.

    What an error costs is said in `failure_policy.classify`.

    clips_done: encoded or failed since the start, committed or not; for a progress bar.
    """

    def __init__(self, spec: WorkerSpec, device: torch.device) -> None:
        self._spec = spec
        self._layouts = spec.manifest.layouts()
        self._format = get_format(spec.manifest.format)
        self._encoder = build_encoder(spec, device)
        self.gate = Gate(self._encoder, spec.config.quality)
        self._pool = build_pool(spec, self._encoder)
        self._submitting = threading.Lock()
        # One thread: torch keeps a team of threads for each thread that calls it, and teams get in
        # each other's way.
        self._encoding = DaemonPool(1, name="encode")
        self.clips_done = 0

    def encode_shard(self, shard: Shard) -> ShardReport:
        """Decode, encode and commit one shard; what another run has committed is adopted."""
        layout = self._layouts[shard.bucket.name]
        committed = self._adopt(shard)
        if committed is not None:
            self.clips_done += len(shard.clips)
            return committed
        with self._submitting:
            encoding = self._begin(shard)
        rows, results, wait_s = encoding.result()
        manifest = self._spec.manifest
        report = commit_shard(
            self._spec.storage, self._format, layout, shard, rows, results, manifest.fingerprint
        )
        return dataclasses.replace(report, wait_s=wait_s)

    def _begin(self, shard: Shard) -> Future[Encoded]:
        """Ask for the pixels of a shard, and for its encoding."""
        clips = [None if row in shard.retired else clip for row, clip in enumerate(shard.clips)]
        if is_long(self._encoder, shard.bucket):
            pieces = [None if c is None else decode_pieces(self._pool, c) for c in clips]
            return self._encoding.submit(self._encode_long, shard, pieces)
        futures = [None if c is None else self._pool.decode(c) for c in clips]
        return self._encoding.submit(self._encode_clips, shard, futures)

    def _encode_long(self, shard: Shard, pieces: Sequence[Pieces | None]) -> Encoded:
        def count() -> None:
            self.clips_done += 1

        return LongShard(self._encoder, shard, on_clip=count).encode(pieces)

    def _adopt(self, shard: Shard) -> ShardReport | None:
        """Return the report of a shard that is committed, None if it is not."""
        layout, manifest = self._layouts[shard.bucket.name], self._spec.manifest
        return adopt_shard(self._spec.storage, self._format, layout, shard, manifest.fingerprint)

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done + self._pool.num_steps

    def close(self) -> None:
        """Stop the decoding processes, and the encoder's thread with them."""
        self._pool.close()
        self._encoding.close(None)

    def _encode_clips(
        self,
        shard: Shard,
        futures: list[Future[DecodedClip] | None],
    ) -> Encoded:
        """Return the rows, what became of each clip, and the time spent waiting for pixels."""
        rows: list[Array | None] = []
        results = []
        wait_s = 0.0
        try:
            for index, future in enumerate(futures):
                waiting = time.perf_counter()
                row: Array | None = None
                try:
                    if future is None:
                        result = RETIRED
                    else:
                        decoded = future.result()
                        futures[index] = None
                        wait_s += time.perf_counter() - waiting
                        row, result = self._encode_clip(shard, index, decoded)
                except OF_CLIP as error:
                    result = ClipResult(reason=error.reason, message=str(error))
                rows.append(row)
                results.append(result)
                self.clips_done += 1
        finally:
            abandon(futures)
        return rows, results, wait_s

    def _encode_clip(
        self, shard: Shard, index: int, decoded: DecodedClip
    ) -> tuple[Array | None, ClipResult]:
        started, compared_s = time.perf_counter(), self.gate.busy_s
        pixels = torch.from_numpy(decoded.pixels)[None]
        row = error = psnr = failure = None
        try:
            encoded = out_of_memory.encode(self._encoder, pixels)
            row = to_stored(encoded, shard.clips[index].key, self._spec.manifest.spec)
            error = tiling_error(self._encoder, pixels, encoded, shard=shard.index, row=index)
            number = shard.index * self._spec.manifest.shard_clips + index
            psnr = self.gate.look(row, pixels[0], key=shard.clips[index].key, number=number)
        except OF_CLIP as clip_error:
            failure = clip_error
        finally:
            decoded.release()
        return row, ClipResult(
            reason=failure.reason if failure else None,
            message=str(failure) if failure else None,
            start_s=decoded.start_s,
            end_s=decoded.end_s,
            source_height=decoded.source_height,
            source_width=decoded.source_width,
            picture=decoded.picture,
            decoder=decoded.decoder,
            tiling_error=error,
            psnr=psnr,
            decode_s=decoded.decode_s,
            encode_s=time.perf_counter() - started - (self.gate.busy_s - compared_s),
        )


def build_encoder(spec: WorkerSpec, device: torch.device) -> Encoder:
    """Load the cache's encoder."""
    module, config = encoders.resolve(spec.config.encoder)
    return module.build(config, spec=spec.manifest.spec, device=device)


def build_pool(spec: WorkerSpec, encoder: Encoder | None = None) -> DecodePool:
    """Start the processes that decode for a worker. encoder: of whole clips, which may be long."""
    run = spec.config.run
    num_processes = run.num_decode_processes(spec.num_cpus)
    buckets = [Bucket.parse(name) for name in spec.manifest.layouts()]
    clip_bytes = max(decoded_bytes(encoder, bucket) for bucket in buckets)
    affordable = run.decode_ahead_bytes // clip_bytes
    num_buffers = max(2, min(num_processes + SPARE_BUFFERS, affordable))
    return DecodePool.for_run(spec.config, num_processes=num_processes, num_buffers=num_buffers)
