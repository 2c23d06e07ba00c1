"""The worker of a cache whose corpus is another cache: latents are read, decoded, encoded and written.

Shards overlap as with files: while one is written, the next is encoded, and the one after that is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch

from latentcache.core.dtypes import Array
from latentcache.core.records import RETIRED, ClipResult, Shard, ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.format.commit import adopt_shard, commit_shard
from latentcache.format.shards import get_format
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.transcoder import Given, Transcoder
from latentcache.running.worker import WorkerSpec, build_encoder

#: Clips that are read at once: latents are small, so requests overlap to hide latency.
NUM_READERS = 4


class CachedSpec(WorkerSpec):
    """What a worker of such a cache needs: the same."""

    def build(self, device: torch.device) -> CachedWorker:
        """Build the worker. Raises what its encoder raises."""
        return CachedWorker(self, device)


class CachedWorker:
    """Encodes shards; thread-safe. Errors cost what they cost a `ShardWorker`. No clip is compared."""

    def __init__(self, spec: WorkerSpec, device: torch.device) -> None:
        self._spec = spec
        self._layouts = spec.manifest.layouts()
        self._format = get_format(spec.manifest.format)
        encoder = build_encoder(spec, device)
        self._transcoder = Transcoder(spec.config, spec.manifest, encoder, device)
        self._submitting = threading.Lock()
        self._reading = DaemonPool(NUM_READERS, name="read")
        self._encoding = DaemonPool(1, name="encode")
        self.clips_done = 0

    def encode_shard(self, shard: Shard) -> ShardReport:
        """Read, encode and commit one shard; what another run has committed is adopted."""
        storage, manifest = self._spec.storage, self._spec.manifest
        layout = self._layouts[shard.bucket.name]
        committed = adopt_shard(storage, self._format, layout, shard, manifest.fingerprint)
        if committed is not None:
            self.clips_done += len(shard.clips)
            return committed
        with self._submitting:
            given = [
                None if row in shard.retired else self._reading.submit(self._transcoder.read, clip)
                for row, clip in enumerate(shard.clips)
            ]
            encoding = self._encoding.submit(self._encode_clips, shard, given)
        rows, results, wait_s = encoding.result()
        report = commit_shard(
            storage, self._format, layout, shard, rows, results, manifest.fingerprint
        )
        return replace(report, wait_s=wait_s)

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done

    def close(self) -> None:
        """Stop the threads."""
        self._reading.close(None)
        self._encoding.close(None)

    def _encode_clips(
        self, shard: Shard, given: Sequence[Future[Given] | None]
    ) -> tuple[list[Array | None], list[ClipResult], float]:
        """Return the rows, what became of each clip, and the time spent waiting for latents."""
        rows: list[Array | None] = []
        results, wait_s = [], 0.0
        try:
            for clip, future in zip(shard.clips, given, strict=True):
                row: Array | None = None
                result = RETIRED
                waiting = time.perf_counter()
                try:
                    if future is not None:
                        found = future.result()
                        started = time.perf_counter()
                        wait_s += started - waiting
                        row, result = self._transcoder.encode(clip, found)
                        result = replace(result, encode_s=time.perf_counter() - started)
                except OF_CLIP as error:
                    result = ClipResult(reason=error.reason, message=str(error))
                rows.append(row)
                results.append(result)
                self.clips_done += 1
        finally:
            for future in given:
                if future is not None:
                    future.cancel()
        return rows, results, wait_s
