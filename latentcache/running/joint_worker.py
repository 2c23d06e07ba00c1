"""The worker of joint fields: each text is encoded with images, the clip's first frame or other files'."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from latentcache.config.caption_fields import JointField
from latentcache.core.dtypes import Array
from latentcache.core.records import Clip
from latentcache.encoders.text import build_joint_encoder
from latentcache.errors import ClipError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.taken import Texts
from latentcache.planning.fields.describe import text_arrays
from latentcache.running.clip_worker import INPUT_SHA_DIGITS, Asked, ClipWorker, check_own_files
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.field_arrays import check_encoder
from latentcache.running.frame_fields import frames_of, next_pixels
from latentcache.running.other_files import OtherFile, OtherFiles
from latentcache.running.text_worker import to_stored_text
from latentcache.running.worker import WorkerSpec, build_pool


class JointWorker(ClipWorker):
    """Encodes texts with images; thread-safe."""

    def __init__(
        self, spec: WorkerSpec, field: FieldManifest, settings: JointField, device: torch.device
    ) -> None:
        check_own_files(spec)
        self._settings = settings
        self._encoder = build_joint_encoder(settings.encoder(), device)
        arrays = text_arrays(self._encoder.arrays, field.arrays[0].dtype)
        check_encoder(field, arrays, self._encoder.recipe())
        super().__init__(spec, field, build_pool(spec))
        self._others: OtherFiles | None = None
        if settings.image_columns:
            same_shape = settings.same_shape
            self._others = OtherFiles(self._pool, spec.config.clips, same_shape=same_shape)

    def ask(self, clips: Sequence[Clip], texts: Sequence[Texts]) -> list[Asked]:
        """Ask for each clip's images."""
        num = len(self._settings.image_columns)
        files: list[Sequence[OtherFile | ClipError]] = [()] * len(clips)
        if self._others is not None:
            columns = zip(*(of_clip[:num] for of_clip in texts), strict=True)
            found = [self._others.find(clips, column) for column in columns]
            files = list(zip(*found, strict=True)) or files
        given = zip(clips, (of_clip[num:] for of_clip in texts), files, strict=True)
        return [self._ask_one(*one) for one in given]

    def _ask_one(self, clip: Clip, texts: Texts, files: Sequence[OtherFile | ClipError]) -> Asked:
        asked = Asked(clip, texts=texts)
        try:
            self._ask_images(asked, files)
        except ClipError as error:
            asked.error = error
        return asked

    def _ask_images(self, asked: Asked, files: Sequence[OtherFile | ClipError]) -> None:
        if not asked.texts:
            columns = " or ".join(self._settings.text_columns)
            raise ClipError("no_caption", f"there is no text in {columns}")
        clip = asked.clip
        for file in files:
            if isinstance(file, ClipError):
                raise file
            asked.identity += f" {file.identity}"
            asked.futures.append(file.decode(self._pool, clip, [0]))
        if self._others is None:
            (first,) = frames_of(clip, "first", self._spec.config.clips.sampling)
            asked.futures.append(self._pool.decode(first))

    def make(self, asked: Asked, sample: Sample) -> list[Sample]:
        """Return a sample of each text; one that fails leaves the others."""
        num = len(asked.futures)
        images = [
            next_pixels(asked.futures)[0] for _ in range(num)
        ]  # of a whole clip its first frame
        return [
            self._sample(replace(sample, choice=choice), text, images)
            for choice, text in enumerate(asked.texts)
        ]

    def _sample(self, sample: Sample, text: str, images: Sequence[Array]) -> Sample:
        whole = f"{sample.input_sha} {text}".encode("utf-8", "surrogatepass")
        sha = hashlib.sha256(whole).hexdigest()[:INPUT_SHA_DIGITS]
        sample = replace(sample, input_sha=sha)
        try:
            encoded = self._encoder.encode(text, [torch.from_numpy(image) for image in images])
            stored = to_stored_text(encoded, self._encoder.arrays, self._field.arrays)
        except OF_CLIP as error:
            return sample.failed(error.reason, str(error))
        return replace(
            sample, arrays=stored.arrays, tokens=stored.tokens, lost_tokens=stored.lost_tokens
        )
