"""Fields of frames: what a field stores of a clip, once the frames that it is made of are decoded.

Whether these frames were decoded for the latents or for the field itself, the record is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import torch

from latentcache.config.fields import RawField, VisualField
from latentcache.core import posterior
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.fields import given_frames
from latentcache.core.records import RETIRED, Clip
from latentcache.decoders.pool import DecodedClip
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.towers import build_image_tower
from latentcache.encoders.towers.protocol import ImageTower
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.describe import tower_arrays
from latentcache.running.clip_worker import input_sha
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.field_arrays import check_encoder, to_stored
from latentcache.running.worker import WorkerSpec, build_encoder

#: Decoded frames of a clip that are waited for; each is taken off once.
Frames = list[Future[DecodedClip]]
#: Gives a clip's frames, uint8 [1, H, W, 3] each, or all of them as one [T, H, W, 3]. Raises ClipError.
Pixels = Callable[[], Sequence[Array]]


class FrameField:
    """Makes a field's samples of clips' frames; on one thread.

    encoder: the cache's own, if it is loaded already; omitted, it is loaded if the field needs it.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        field: FieldManifest,
        settings: RawField | VisualField,
        device: torch.device,
        encoder: Encoder | None = None,
    ) -> None:
        self._spec, self._field, self._settings = spec, field, settings
        self._encoder: Encoder | None = None
        self._tower: ImageTower | None = None
        if isinstance(settings, VisualField) and settings.tower is not None:
            self._tower = build_image_tower(settings.tower, device)
            arrays = tower_arrays(self._tower.arrays, field.arrays[0].dtype)
            check_encoder(field, arrays, self._tower.recipe())
        elif isinstance(settings, VisualField):
            self._encoder = encoder or build_encoder(spec, device)
            if settings.of.endswith("then_zeros") and not hasattr(self._encoder, "encode_masked"):
                raise EncoderError(
                    f"of: {settings.of}: the encoder {spec.manifest.spec.model_class} has no "
                    "`encode_masked`, which encodes frames of zeros: see "
                    "latentcache.encoders.protocol.MaskedEncoder. Tiled encoders have none."
                )

    def sample(self, clip: Clip, row: int, pixels: Pixels | None) -> Sample:
        """Return what becomes of a clip. pixels: None of a retired row."""
        sample = Sample(key=clip.key, row=row, choice=0)
        if pixels is None:
            return sample.failed(str(RETIRED.reason), RETIRED.message)
        sample = replace(sample, input_sha=input_sha(clip, self._settings.of))
        try:
            return replace(sample, arrays=self.arrays(clip, pixels()))
        except OF_CLIP as error:
            return sample.failed(error.reason, str(error))

    def arrays(self, clip: Clip, pixels: Sequence[Array]) -> list[Array]:
        """Return a clip's arrays. Raises ClipError."""
        if self._tower is not None:
            with torch.inference_mode():
                states = self._tower.encode(torch.from_numpy(np.concatenate(pixels)))
            return to_stored(states, self._tower.arrays, self._field.arrays)
        if self._encoder is None:
            return list(pixels[:1])
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


def frames_of(clip: Clip, of: str, sampling: str) -> list[Clip]:
    """Return what is decoded of a clip for a field: each frame as a clip of its own, or the whole clip.

    sampling: as in `clips`. Where frames are spread over a source, which ones they are follows from how
    many, so that the clip is decoded whole.
    """
    if of == "clip" or sampling == "spread":
        return [clip]
    return [replace(clip, start=clip.start + n, frames=1) for n in given_frames(of, clip.frames)]


def taken(frames: Frames, clip: Clip, of: str) -> list[Array]:
    """Wait for what `frames_of` says; returns a field's frames, [1, H, W, 3] each, of `clip` all in one.

    Buffers are let go of. Raises ClipError.
    """
    pixels = [next_pixels(frames) for _ in range(len(frames))]
    given = given_frames(of, clip.frames)
    if of == "clip" or [len(part) for part in pixels] == [1] * len(given):
        return pixels
    return [pixels[0][n : n + 1].copy() for n in given]  # the whole clip is let go of


def next_pixels(frames: Frames) -> Array:
    """Wait for the next pixels [T, H, W, 3]; returns a copy of them, and lets go of their buffer."""
    decoded = frames[0].result()
    del frames[0]
    pixels = decoded.pixels.copy()
    decoded.release()
    return pixels
