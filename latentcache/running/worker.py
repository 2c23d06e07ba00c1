"""ShardWorker: everything one GPU does. Decode, encode and write overlap; memory is bounded.

Several threads call `encode_shard` at once, one a shard: while the first writes, the second encodes and
the third's clips are being decoded. One thread does all the encoding, in the order in which the shards
came, and decoding serves them in that order too, so that none waits for a buffer that a later one holds.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.core.dtypes import Array
from latentcache.core.records import Bucket, Shard, ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.decoders.pool import DecodePool
from latentcache.encoders.batching import batching_of
from latentcache.encoders.protocol import Encoder
from latentcache.errors import CacheError
from latentcache.format.commit import adopt_shard, commit_shard
from latentcache.format.manifest import Manifest, read_cache_json
from latentcache.format.shards import get_format
from latentcache.redaction import redact
from latentcache.running.abandoning import abandon
from latentcache.running.long_clips import LongShard, Pieces, decode_pieces, decoded_bytes, is_long
from latentcache.running.quality_gate import Gate
from latentcache.running.shard_encoder import Encoded, Futures, ShardEncoder
from latentcache.running.transfer import transfer_for
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
    """What a runner runs on one device."""

    @property
    def clips_done(self) -> int:
        """See `ShardWorker`."""
        ...

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


class Onlooker(Protocol):
    """Looks at the clips of a shard, on the encoder's thread."""

    def see(self, row: int, first: int, pixels: Array) -> object:
        """Look at frames of a clip, uint8 [T, H, W, 3], from number `first` on; good until it returns."""
        ...

    def done(self) -> object:
        """Take in that all clips of the shard have been encoded. Raises nothing."""
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

    clips_done: encoded or failed since the start, committed or not; for a progress bar. encoder, pool and
    encoding: the cache's encoder, its clips' decoder, and the thread on which all is encoded.
    """

    def __init__(self, spec: WorkerSpec, device: torch.device) -> None:
        self._spec = spec
        self._layouts = spec.manifest.layouts()
        self._format = get_format(spec.manifest.format)
        self.encoder = build_encoder(spec, device)
        self.gate = Gate(self.encoder, spec.config.quality)
        self._shards = ShardEncoder(
            self.encoder,
            batching_of(spec.config.encoder),
            self.gate,
            transfer_for(self.encoder, device),
            shard_clips=spec.manifest.shard_clips,
            on_clip=self._count_clip,
        )
        self.pool = build_pool(spec, self.encoder)
        self._submitting = threading.Lock()
        # One thread: torch keeps a team of threads for each thread that calls it, and teams get in
        # each other's way.
        self.encoding = DaemonPool(1, name="encode")
        self.clips_done = 0

    def encode_shard(self, shard: Shard, onlooker: Onlooker | None = None) -> ShardReport:
        """Decode, encode and commit one shard; what another run has committed is adopted."""
        layout = self._layouts[shard.bucket.name]
        committed = self._adopt(shard)
        if committed is not None:
            self.clips_done += len(shard.clips)
            return committed
        with self._submitting:
            encoding = self._begin(shard, onlooker)
        found = encoding.result()
        storage, fingerprint = self._spec.storage, self._spec.manifest.fingerprint
        report = commit_shard(
            storage, self._format, layout, shard, found.rows, found.results, fingerprint
        )
        return dataclasses.replace(
            report,
            wait_s=found.wait_s,
            compare_s=found.compare_s,
            kernel_errors=found.kernel_errors,
        )

    def _begin(self, shard: Shard, onlooker: Onlooker | None) -> Future[Encoded]:
        """Ask for the pixels of a shard, and for its encoding."""
        clips = [None if row in shard.retired else clip for row, clip in enumerate(shard.clips)]
        if is_long(self._spec.config, self.encoder, shard.bucket):
            pieces = [None if c is None else decode_pieces(self.pool, c) for c in clips]
            return self.encoding.submit(self._encode_long, shard, pieces, onlooker)
        futures = [None if c is None else self.pool.decode(c) for c in clips]
        encoding = self.encoding.submit(self._encode_clips, shard, futures, onlooker)
        encoding.add_done_callback(lambda done: abandon(futures) if done.cancelled() else None)
        return encoding

    def _encode_long(
        self, shard: Shard, pieces: Sequence[Pieces | None], onlooker: Onlooker | None
    ) -> Encoded:
        on_pixels = onlooker.see if onlooker else None
        long = LongShard(self.encoder, shard, on_clip=self._count_clip, on_pixels=on_pixels)
        found = long.encode(pieces)
        if onlooker is not None:
            onlooker.done()
        return found

    def _adopt(self, shard: Shard) -> ShardReport | None:
        """Return the report of a shard that is committed, None if it is not."""
        layout, manifest = self._layouts[shard.bucket.name], self._spec.manifest
        return adopt_shard(self._spec.storage, self._format, layout, shard, manifest.fingerprint)

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done + self.pool.num_steps

    def give_back(self) -> None:
        """Let go of shards that are not being encoded yet, for whoever called `encode_shard` sees an error.

        What is being encoded or written goes on. For a worker that is to end: it takes no more.
        """
        self.encoding.cancel()

    def close(self) -> None:
        """Stop the decoding processes, and the encoder's thread with them."""
        self.pool.close()
        self.encoding.close(None)

    def _encode_clips(self, shard: Shard, futures: Futures, onlooker: Onlooker | None) -> Encoded:
        """Encode a shard; whatever happens, what is decoded of it is released."""
        try:
            found = self._shards.encode(shard, futures, onlooker.see if onlooker else None)
        finally:
            abandon(futures)
        if onlooker is not None:
            onlooker.done()
        return found

    def _count_clip(self) -> None:
        self.clips_done += 1


def build_encoder(spec: WorkerSpec, device: torch.device) -> Encoder:
    """Load the cache's encoder."""
    module, config = encoders.resolve(spec.config.encoder)
    return module.build(config, spec=spec.manifest.spec, device=device)


def build_pool(spec: WorkerSpec, encoder: Encoder | None = None) -> DecodePool:
    """Start the processes that decode for a worker. encoder: of whole clips, which may be long."""
    run = spec.config.run
    num_processes = run.num_decode_processes(spec.num_cpus)
    buckets = [Bucket.parse(name) for name in spec.manifest.layouts()]
    clip_bytes = max(decoded_bytes(spec.config, encoder, bucket) for bucket in buckets)
    affordable = run.decode_ahead_bytes // clip_bytes
    num_buffers = max(2, min(num_processes + SPARE_BUFFERS, affordable))
    return DecodePool.for_run(spec.config, num_processes=num_processes, num_buffers=num_buffers)
