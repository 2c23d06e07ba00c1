"""ShardWorker: everything one GPU does. Decode, encode and write overlap; memory is bounded.

Several threads call `encode_shard` at once, one a shard: while the first writes, the second encodes and
the third's clips are being decoded. One thread does all the encoding, in the order in which the shards
came, and decoding serves them in that order too, so that none waits for a buffer that a later one holds.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import Bucket, ChunkRef, ClipResult, Shard, ShardReport
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.encoders import out_of_memory
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import to_stored
from latentcache.encoders.tiled import tiling_error
from latentcache.format.commit import commit_shard, report_committed
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest
from latentcache.format.paths import sample_path
from latentcache.format.schemas import object_facts
from latentcache.format.shards import get_format
from latentcache.format.tables import read_sized_table
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.quality_gate import Gate
from latentcache.storage.folder import Storage

Encoded = tuple[Array, ClipResult]
CHUNK_FIELDS = tuple(f.name for f in dataclasses.fields(ChunkRef))
RESULT_FIELDS = tuple(f.name for f in dataclasses.fields(ClipResult))

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
    kept: Sequence[pa.Field] = ()
    num_cpus: int = 1


class ShardWorker:
    """Encodes shards; thread-safe. A bad clip is recorded in its row; anything else is raised.

    What an error costs is said in `failure_policy.classify`.

    clips_done: encoded or failed since the start, committed or not; for a progress bar.
    """

    def __init__(self, spec: WorkerSpec, device: torch.device) -> None:
        self._spec = spec
        self._layouts = spec.manifest.layouts()
        self._format = get_format(spec.manifest.format)
        self._encoder = _build_encoder(spec, device)
        self.gate = Gate(self._encoder, spec.config.quality)
        self._pool = _build_pool(spec)
        self._submitting = threading.Lock()
        # One thread: torch keeps a team of threads for each thread that calls it, and teams get in
        # each other's way.
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self.clips_done = 0

    def encode_shard(self, shard: Shard, *, retry_failed: bool = False) -> ShardReport:
        """Decode, encode, write and commit one shard; nothing is written where another run was faster.

        retry_failed: the shard is committed; its ok rows are kept as they are, bit for bit, the failed
        ones are encoded, and its sample table is replaced.
        """
        committed = self._read_committed(shard)
        if committed and _is_finished(committed[0], retry_failed):
            self.clips_done += len(shard.clips)
            return report_committed(shard, *committed)
        previous = self._read_ok(shard, committed[0]) if committed else {}
        with self._submitting:
            futures = [
                None if row in previous else self._pool.decode(clip)
                for row, clip in enumerate(shard.clips)
            ]
            encoding = self._encoding.submit(self._encode_clips, shard, futures, previous)
        rows, results, wait_s = encoding.result()
        committed = self._read_committed(shard)
        if committed and _is_finished(committed[0], retry_failed):
            return report_committed(shard, *committed)
        if retry_failed:
            self._spec.storage.delete(sample_path(shard.bucket.name, shard.index))
        layout = self._layouts[shard.bucket.name]
        report = commit_shard(
            self._spec.storage,
            self._format,
            layout,
            shard,
            rows,
            results,
            self._spec.kept,
            self._spec.manifest.fingerprint,
        )
        return dataclasses.replace(report, wait_s=wait_s)

    def close(self) -> None:
        """Stop the decoding processes, and the encoder's thread with them."""
        self._pool.close()
        self._encoding.shutdown(cancel_futures=True)

    def _encode_clips(
        self,
        shard: Shard,
        futures: list[Future[DecodedClip] | None],
        previous: Mapping[int, Encoded],
    ) -> tuple[list[Array | None], list[ClipResult], float]:
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
                        row, result = previous[index]
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
            _abandon(futures)
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
            decoder=decoded.decoder,
            tiling_error=error,
            psnr=psnr,
            decode_s=decoded.decode_s,
            encode_s=time.perf_counter() - started - (self.gate.busy_s - compared_s),
        )

    def _read_committed(self, shard: Shard) -> tuple[pa.Table, int] | None:
        """Read a shard's sample table and its file's bytes; None where it is not committed.

        Raises CorruptionError where it is damaged, or another recipe's.
        """
        storage, path = self._spec.storage, sample_path(shard.bucket.name, shard.index)
        try:
            table, num_bytes = read_sized_table(storage, path)
            object_facts(table, self._spec.manifest.fingerprint)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise damaged(storage, path, f"is not of this cache: {error}") from error
        return table, num_bytes

    def _read_ok(self, shard: Shard, table: pa.Table) -> dict[int, Encoded]:
        """Read the ok rows of a committed shard; raises CorruptionError."""
        storage, layout = self._spec.storage, self._layouts[shard.bucket.name]
        ok = [row for row in table.to_pylist() if row["status"] == "ok"]
        chunks = [ChunkRef(**{name: row[name] for name in CHUNK_FIELDS}) for row in ok]
        arrays = [np.empty(layout.shape, dtype=numpy_dtype(layout.dtype)) for _ in ok]
        if ok:
            self._format.read(storage, layout, shard.index, chunks, arrays)
        return {row["row"]: (array, _result(row)) for row, array in zip(ok, arrays, strict=True)}


def _is_finished(table: pa.Table, retry_failed: bool) -> bool:
    """Tell whether a committed shard needs nothing more."""
    return not (retry_failed and "failed" in table["status"].to_pylist())


def _result(row: Mapping[str, Any]) -> ClipResult:
    """Read what became of a clip."""
    return ClipResult(**{name: row[name] for name in RESULT_FIELDS})


def _build_encoder(spec: WorkerSpec, device: torch.device) -> Encoder:
    module, config = encoders.resolve(spec.config.encoder)
    return module.build(config, spec=spec.manifest.spec, device=device)


def _build_pool(spec: WorkerSpec) -> DecodePool:
    run = spec.config.run
    num_processes = run.num_decode_processes(spec.num_cpus)
    buckets = [Bucket.parse(name) for name in spec.manifest.layouts()]
    clip_bytes = max(3 * b.frames * b.height * b.width for b in buckets)
    affordable = run.decode_ahead_bytes // clip_bytes
    num_buffers = max(2, min(num_processes + SPARE_BUFFERS, affordable))
    return DecodePool.for_run(spec.config, num_processes=num_processes, num_buffers=num_buffers)


def _abandon(futures: Sequence[Future[DecodedClip] | None]) -> None:
    """Cancel what is not decoded yet, and release what is."""
    for future in futures:
        if future is not None and not future.cancel():
            future.add_done_callback(_release)


def _release(future: Future[DecodedClip]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().release()
