"""The worker of fields of pixels: frames of each clip, or what the cache's encoder gives for them.

Only the frames that a field needs are decoded. Shards overlap as with latents: while one is written, the
next is encoded, and the one after that is decoded.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import torch

from latentcache.config.fields import RawField, VisualField
from latentcache.core import posterior
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.fields import given_frames
from latentcache.core.records import RETIRED, Clip, ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.towers import build_image_tower
from latentcache.encoders.towers.protocol import ImageTower
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample, adopt_field_shard, commit_field_shard
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.describe import tower_arrays
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.abandoning import abandon
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.field_arrays import check_encoder, to_stored
from latentcache.running.field_report import joined
from latentcache.running.other_files import OtherFile, OtherFiles
from latentcache.running.worker import WorkerSpec, build_encoder, build_pool

INPUT_SHA_DIGITS = 32
Frames = list[Future[DecodedClip] | None]
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
        if spec.manifest.provenance.parent is not None:
            raise EncoderError(
                "fields of frames are made of a corpus's own files, and the clips of this cache are those "
                "of another cache. Add the field to that one."
            )
        self._spec, self._field, self._settings = spec, field, settings
        self._encoder: Encoder | None = None
        self._tower: ImageTower | None = None
        if isinstance(settings, VisualField) and settings.tower is not None:
            self._tower = build_image_tower(settings.tower, device)
            arrays = tower_arrays(self._tower.arrays, field.arrays[0].dtype)
            check_encoder(field, arrays, self._tower.recipe())
        elif isinstance(settings, VisualField):
            self._encoder = build_encoder(spec, device)
            if settings.of.endswith("then_zeros") and not hasattr(self._encoder, "encode_masked"):
                raise EncoderError(
                    f"of: {settings.of}: the encoder {spec.manifest.spec.model_class} has no "
                    "`encode_masked`, which encodes frames of zeros: see "
                    "latentcache.encoders.protocol.MaskedEncoder. Tiled encoders have none."
                )
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
        parts = frames_of(clip, self._settings.of)
        if other is None:
            return [self._pool.decode(frame) for frame in parts]
        if isinstance(other, ClipError):
            return [failed(other)]
        try:
            return [other.decode(self._pool, frame) for frame in parts]
        except ClipError as error:
            return [failed(error)]

    def _samples(
        self, shard: FieldShard, part: FieldPart, frames: Sequence[Frames], others: Others
    ) -> tuple[list[Sample], float]:
        """Return what became of each clip, and the time that it took."""
        started, samples = time.perf_counter(), []
        try:
            for row, of_clip in zip(part.rows, frames, strict=True):
                clip = shard.shard.clips[row]
                sample = Sample(
                    key=clip.key, row=row, choice=0, input_sha=self._sha(clip, others.get(row))
                )
                if not of_clip:
                    samples.append(sample.failed(str(RETIRED.reason), RETIRED.message))
                    continue
                try:
                    samples.append(replace(sample, arrays=self._encode(clip, of_clip)))
                except OF_CLIP as error:
                    samples.append(sample.failed(error.reason, str(error)))
                self.clips_done += 1
        finally:
            for of_clip in frames:
                abandon(of_clip)
        return samples, time.perf_counter() - started

    def _sha(self, clip: Clip, other: OtherFile | ClipError | None) -> str:
        identity = f" {other.identity}" if isinstance(other, OtherFile) else ""
        text = f"{clip.identity} {clip.start} {self._settings.of}{identity}"
        return hashlib.sha256(text.encode()).hexdigest()[:INPUT_SHA_DIGITS]

    def _encode(self, clip: Clip, frames: Frames) -> list[Array]:
        """Return a clip's arrays. Raises ClipError."""
        pixels = [_taken(frames, n) for n in range(len(frames))]
        if self._tower is not None:
            with torch.inference_mode():
                states = self._tower.encode(torch.from_numpy(np.concatenate(pixels)))
            return to_stored(states, self._tower.arrays, self._field.arrays)
        if self._encoder is None:
            return pixels[:1]
        return [self._to_stored(self._latents(self._encoder, clip, pixels))]

    def _latents(self, encoder: Encoder, clip: Clip, pixels: Sequence[Array]) -> torch.Tensor:
        """Encode frames [1, H, W, 3] by themselves, or in a clip that is zeros otherwise."""
        if not self._settings.of.endswith("then_zeros"):
            return encoder.encode(torch.from_numpy(pixels[0])[None])
        whole = np.zeros((clip.frames, *pixels[0].shape[1:]), np.uint8)
        given = given_frames(self._settings.of, clip.frames)
        for frame, n in zip(pixels, given, strict=True):
            whole[n] = frame[0]
        zeros = [n not in given for n in range(clip.frames)]
        encoded: torch.Tensor = encoder.encode_masked(  # type: ignore[attr-defined]
            torch.from_numpy(whole)[None], zeros
        )
        return encoded

    def _to_stored(self, encoded: torch.Tensor) -> Array:
        spec = self._spec.manifest.spec
        mean = posterior.reduce(encoded, "mean", [""], channels=spec.channels)[0]
        kept = mean.to("cpu", torch_dtype(self._field.arrays[0].dtype)).contiguous()
        if not torch.isfinite(kept).all():
            raise ClipError("non_finite", "the encoder gave NaN or infinity")
        return as_numpy(kept)

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done + self._pool.num_steps

    def close(self) -> None:
        """Stop the decoding processes, and the encoder's thread with them."""
        self._pool.close()
        self._encoding.close(None)


def _taken(frames: Frames, n: int) -> Array:
    """Return a copy of a decoded frame, [1, H, W, 3], and let go of its buffer."""
    future = frames[n]
    assert future is not None, "each frame is taken once"
    decoded = future.result()
    frames[n] = None
    pixels = decoded.pixels.copy()
    decoded.release()
    return pixels


def failed(error: ClipError) -> Future[DecodedClip]:
    """Return the frames of a clip that cannot be decoded."""
    future: Future[DecodedClip] = Future()
    future.set_exception(error)
    return future


def frames_of(clip: Clip, of: str) -> list[Clip]:
    """Return the frames of a clip that a field needs, each as a clip of its own; of `clip` all as one."""
    if of == "clip":
        return [clip]
    return [replace(clip, start=clip.start + n, frames=1) for n in given_frames(of, clip.frames)]
