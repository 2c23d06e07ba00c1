"""The worker of visual fields with masks: the cache's encoder on clips of which a mask hides parts.

A clip's pixels [T, H, W, 3] are uint8; the mask is a video or a picture, resized and cropped alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from latentcache.config.fields import MaskedField
from latentcache.core import posterior
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.records import Clip
from latentcache.core.spec import LatentSpec
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders.values import of_values
from latentcache.errors import ClipError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.taken import Texts
from latentcache.running.clip_worker import Asked, ClipWorker, check_own_files
from latentcache.running.frame_fields import next_pixels
from latentcache.running.other_files import OtherFile, OtherFiles
from latentcache.running.worker import WorkerSpec, build_encoder, build_pool


class MaskedWorker(ClipWorker):
    """Encodes what masks keep of clips, and what they hide; thread-safe."""

    def __init__(
        self, spec: WorkerSpec, field: FieldManifest, settings: MaskedField, device: torch.device
    ) -> None:
        check_own_files(spec)
        self._settings = settings
        self._encoder = of_values(build_encoder(spec, device))
        super().__init__(spec, field, build_pool(spec))
        rules = spec.config.clips
        self._others = OtherFiles(self._pool, rules, same_shape=settings.same_shape)

    def ask(self, clips: Sequence[Clip], texts: Sequence[Texts]) -> list[Asked]:
        """Ask for each clip's pixels, or another file's, and for its mask."""
        columns = list(zip(*texts, strict=True)) or [()] * len(self._settings.columns)
        found = [self._others.find(clips, column) for column in columns]
        of_clips = list(zip(*found, strict=True))
        return [self._ask_one(*one) for one in zip(clips, of_clips, strict=True)]

    def _ask_one(self, clip: Clip, files: Sequence[OtherFile | ClipError]) -> Asked:
        named = dict(zip(self._settings.columns, files, strict=True))
        for file in files:
            if isinstance(file, ClipError):
                return Asked(clip, error=file)
        pixels, mask = (
            named.get(name or "") for name in (self._settings.column, self._settings.masks)
        )
        asked = Asked(
            clip, " ".join(file.identity for file in files if isinstance(file, OtherFile))
        )
        try:
            asked.futures.append(self._decode(clip, pixels))
            if mask is not None:
                asked.futures.append(self._decode_mask(clip, mask))
        except ClipError as error:
            asked.error = error
        return asked

    def _decode(self, clip: Clip, file: OtherFile | ClipError | None) -> Future[DecodedClip]:
        if isinstance(file, OtherFile):
            return file.decode(self._pool, clip, range(clip.frames))
        return self._pool.decode(clip)

    def _decode_mask(self, clip: Clip, file: OtherFile | ClipError) -> Future[DecodedClip]:
        """Ask for a mask: a picture is that of every frame."""
        if isinstance(file, OtherFile) and file.kind == "image":
            return file.decode(self._pool, clip, [0])
        return self._decode(clip, file)

    def make(self, asked: Asked, sample: Sample) -> list[Sample]:
        """Return the latents of what the mask keeps; of vace also of what it hides, and its levels."""
        pixels = next_pixels(asked.futures)
        levels = (
            next_pixels(asked.futures)
            if asked.futures
            else np.full((1, *pixels.shape[1:]), 255, np.uint8)
        )
        levels = np.broadcast_to(levels, pixels.shape)
        hidden = torch.from_numpy(levels > 127)
        kept = self._mean(pixels, ~hidden)
        if self._settings.of == "masked":
            return [replace(sample, arrays=[self._stored(kept)])]
        pair = torch.cat([kept, self._mean(pixels, hidden)])
        mask = folded(levels[..., 0], self._spec.manifest.spec)
        return [replace(sample, arrays=[self._stored(pair), mask])]

    def _mean(self, pixels: Array, shown: torch.Tensor) -> torch.Tensor:
        """Return the latents [C, t, h, w] of a clip with zeros where `shown` [T, H, W, 3] is not set."""
        spec = self._spec.manifest.spec
        encoded = self._encoder.encode_values(with_zeros(pixels, shown, spec)[None])
        return posterior.reduce(encoded, "mean", [""], channels=spec.channels)[0]

    def _stored(self, latents: torch.Tensor) -> Array:
        kept = latents.to("cpu", torch_dtype(self._field.arrays[0].dtype)).contiguous()
        if not torch.isfinite(kept).all():
            raise ClipError("non_finite", "the encoder gave NaN or infinity")
        return as_numpy(kept)


def with_zeros(pixels: Array, shown: torch.Tensor, spec: LatentSpec) -> torch.Tensor:
    """Return values [T, H, W, 3] in [-1, 1], such that what is not shown is zero in the model's own range.

    pixels: uint8. A range from 0 to 1 has its zero at -1. Arithmetic of diffusers' VideoProcessor.
    """
    values = torch.from_numpy(pixels).float().div_(255.0)
    if spec.pixel_range[0] == 0:
        return values.mul_(shown).mul_(2.0).sub_(1.0)
    return values.mul_(2.0).sub_(1.0).mul_(shown)


def folded(levels: Array, spec: LatentSpec) -> Array:
    """Return a mask [T, H, W] by the pixels of a latent: [sh * sw, t, h, w].

    As `prepare_masks` of diffusers' WanVACEPipeline: of time, the nearest frame to each latent's middle.
    """
    frames, height, width = levels.shape
    *_, t, h, w = spec.latent_shape(frames, height, width)
    blocks = levels.reshape(frames, h, height // h, w, width // w)
    planes = blocks.transpose(2, 4, 0, 1, 3).reshape(-1, frames, h, w)
    numbers = torch.arange(frames, dtype=torch.float32)[None, None]
    nearest: Any = torch.nn.functional.interpolate(numbers, size=t, mode="nearest-exact")
    return np.ascontiguousarray(planes[:, nearest[0, 0].long().numpy()])
