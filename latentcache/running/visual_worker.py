"""The worker of fields of pixels: frames of each clip, or what the cache's encoder gives for them.

Only the frames that a field needs are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from latentcache.config.fields import RawField, VisualField
from latentcache.core.fields import given_frames
from latentcache.core.records import Bucket, Clip
from latentcache.errors import ClipError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.taken import Texts
from latentcache.running.clip_worker import Asked, ClipWorker, check_own_files
from latentcache.running.frame_fields import FrameField, Frames, frames_of, taken
from latentcache.running.other_files import OtherFile, OtherFiles
from latentcache.running.worker import WorkerSpec, build_pool


class VisualWorker(ClipWorker):
    """Stores or encodes frames of clips; thread-safe."""

    def __init__(
        self,
        spec: WorkerSpec,
        field: FieldManifest,
        settings: RawField | VisualField,
        device: torch.device,
    ) -> None:
        check_own_files(spec)
        self._settings = settings
        self._frames = FrameField(spec, field, settings, device)
        super().__init__(spec, field, build_pool(spec))
        self._others: OtherFiles | None = None
        if settings.column is not None:
            same_shape = settings.same_shape
            self._others = OtherFiles(self._pool, spec.config.clips, same_shape=same_shape)

    def ask(self, clips: Sequence[Clip], texts: Sequence[Texts]) -> list[Asked]:
        """Ask for the frames of each clip, or of another file, that the field is made of."""
        if self._others is None:
            return [Asked(clip, futures=self._own(clip)) for clip in clips]
        found = self._others.find(clips, [paths[0] for paths in texts])
        return [self._ask_other(*one) for one in zip(clips, found, strict=True)]

    def _ask_other(self, clip: Clip, other: OtherFile | ClipError) -> Asked:
        if isinstance(other, ClipError):
            return Asked(clip, error=other)
        asked = Asked(clip, other.identity)
        try:
            asked.futures = self._of_file(clip, other)
        except ClipError as error:
            asked.error = error
        return asked

    def _own(self, clip: Clip) -> Frames:
        sampling = self._spec.config.clips.sampling
        parts = frames_of(self._sized(clip), self._settings.of, sampling)
        return [self._pool.decode(part) for part in parts]

    def _of_file(self, clip: Clip, other: OtherFile) -> Frames:
        given = given_frames(self._settings.of, clip.frames)
        parts = [given] if self._settings.of == "clip" else [[number] for number in given]
        return [other.decode(self._pool, self._sized(clip), part) for part in parts]

    def _sized(self, clip: Clip) -> Clip:
        """Return a clip of the size that the field's pixels have."""
        bucket = Bucket(frames=clip.frames, height=clip.height, width=clip.width)
        height, width = self._field.arrays[0].size_in(bucket)
        return replace(clip, height=height, width=width)

    def make(self, asked: Asked, sample: Sample) -> list[Sample]:
        """Return the frames, or what the encoder gives for them."""
        pixels = taken(asked.futures, asked.clip, self._settings.of)
        return [replace(sample, arrays=self._frames.arrays(asked.clip, pixels))]
