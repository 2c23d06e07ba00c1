"""The worker of fields of pixels: frames of each clip, or what the cache's encoder gives for them.

Only the frames that a field needs are decoded. Shards overlap as with latents: while one is written, the
next is encoded, and the one after that is decoded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import torch

from latentcache.config.fields import RawField, VisualField
from latentcache.core.records import Bucket, Clip, ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.decoders.pool import DecodedClip
from latentcache.errors import ClipError
from latentcache.format.fields.commit import Sample, adopt_field_shard, commit_field_shard
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.abandoning import abandon
from latentcache.running.clip_worker import check_own_files
from latentcache.running.field_report import joined
from latentcache.running.frame_fields import FrameField, Frames, frames_of, taken
from latentcache.running.other_files import OtherFile, OtherFiles
from latentcache.running.worker import WorkerSpec, build_pool

#: Of each row that has one.
Others = Mapping[int, OtherFile | ClipError]


class VisualWorker:
    """Encodes frames of clips; thread-safe."""

    def __init__(
        self,
        spec: WorkerSpec,
        field: FieldManifest,
        settings: RawField | VisualField,
        device: torch.device,
    ) -> None:
        check_own_files(spec)
        self._spec, self._field, self._settings = spec, field, settings
        self._frames = FrameField(spec, field, settings, device)
        self._pool = build_pool(spec)
        self._others: OtherFiles | None = None
        if settings.column is not None:
            folder = str(field.settings["folder"])
            self._others = OtherFiles(
                self._pool, settings.folder or folder, same_shape=settings.same_shape
            )
        self._submitting = threading.Lock()
        self._encoding = DaemonPool(1, name="encode")
        self.clips_done = 0

    def encode_shard(self, shard: FieldShard) -> ShardReport:
        """Encode and commit the missing versions of a shard; what another run has committed is adopted."""
        return joined([self._encode_part(shard, part) for part in shard.parts])

    def _encode_part(self, shard: FieldShard, part: FieldPart) -> ShardReport:
        manifest, storage, place = self._spec.manifest, self._spec.storage, shard.shard.id
        adopted = adopt_field_shard(storage, manifest, self._field, part.version, place)
        if adopted is not None:
            self.clips_done += len(part.rows)
            return adopted
        with self._submitting:
            others = self._find_others(shard, part)
            frames = [
                []
                if row in shard.shard.retired
                else self._decode(shard.shard.clips[row], others.get(row))
                for row in part.rows
            ]
            encoding = self._encoding.submit(self._samples, shard, part, frames, others)
        samples, encode_s = encoding.result()
        report = commit_field_shard(storage, manifest, self._field, part.version, place, samples)
        return replace(report, encode_s=encode_s)

    def _find_others(self, shard: FieldShard, part: FieldPart) -> Others:
        """Return the other file of each row, if the field is of other files than the clips' sources."""
        if self._others is None:
            return {}
        wanted = [
            (row, shard.shard.clips[row], "".join(texts[:1]))
            for row, texts in zip(part.rows, part.texts, strict=True)
            if row not in shard.shard.retired
        ]
        found = self._others.find([clip for _, clip, _ in wanted], [path for *_, path in wanted])
        return {row: other for (row, *_), other in zip(wanted, found, strict=True)}

    def _decode(self, clip: Clip, other: OtherFile | ClipError | None) -> Frames:
        bucket = Bucket(frames=clip.frames, height=clip.height, width=clip.width)
        height, width = self._field.arrays[0].size_in(bucket)
        clip = replace(clip, height=height, width=width)
        if other is None:
            sampling = self._spec.config.clips.sampling
            return [
                self._pool.decode(part) for part in frames_of(clip, self._settings.of, sampling)
            ]
        if isinstance(other, ClipError):
            return [failed(other)]
        try:
            parts = frames_of(clip, self._settings.of, "nearest")  # by time
            return [other.decode(self._pool, part) for part in parts]
        except ClipError as error:
            return [failed(error)]

    def _samples(
        self, shard: FieldShard, part: FieldPart, frames: Sequence[Frames], others: Others
    ) -> tuple[list[Sample], float]:
        """Return what became of each clip, and the time that it took."""
        started, samples = time.perf_counter(), []
        try:
            for row, of_clip in zip(part.rows, frames, strict=True):
                clip, other = shard.shard.clips[row], others.get(row)
                pixels = partial(taken, of_clip, clip, self._settings.of) if of_clip else None
                identity = other.identity if isinstance(other, OtherFile) else ""
                samples.append(self._frames.sample(clip, row, pixels, identity))
                self.clips_done += bool(of_clip)
        finally:
            for of_clip in frames:
                abandon(of_clip)
        return samples, time.perf_counter() - started

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done + self._pool.num_steps

    def close(self) -> None:
        """Stop the decoding processes, and the encoder's thread with them."""
        self._pool.close()
        self._encoding.close(None)


def failed(error: ClipError) -> Future[DecodedClip]:
    """Return the frames of a clip that cannot be decoded."""
    future: Future[DecodedClip] = Future()
    future.set_exception(error)
    return future
