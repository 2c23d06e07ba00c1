"""The worker of audio fields: what is heard while a clip's frames are shown, as it is or encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from latentcache.config.fields import AudioField
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.fields import FieldArray
from latentcache.core.records import Clip
from latentcache.decoders.pool import DecodedSound
from latentcache.encoders.sounds import build_sound_encoder
from latentcache.encoders.sounds.protocol import SoundEncoder
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.taken import Texts
from latentcache.planning.fields.describe import sound_arrays
from latentcache.running.clip_worker import Asked, ClipWorker, check_own_files
from latentcache.running.field_arrays import check_encoder
from latentcache.running.worker import WorkerSpec, build_pool


class AudioWorker(ClipWorker):
    """Stores each clip's sound, or what an encoder gives for it; thread-safe."""

    def __init__(
        self, spec: WorkerSpec, field: FieldManifest, settings: AudioField, device: torch.device
    ) -> None:
        check_own_files(spec)
        self._encoder: SoundEncoder | None = None
        if settings.sound is not None:
            self._encoder = build_sound_encoder(settings.sound, settings.seconds, device)
            check_encoder(field, field.arrays, self._encoder.recipe())
            _check_shapes(field, self._encoder)
        recipe = field.recipe["encoder"]
        self._rate, self._channels = int(recipe["rate"]), int(recipe["channels"])
        self._max_samples = max(1, round(settings.seconds * self._rate))
        super().__init__(spec, field, build_pool(spec))

    def ask(self, clips: Sequence[Clip], texts: Sequence[Texts]) -> list[Asked]:  # noqa: ARG002
        """Ask for each clip's sound."""
        wanted = {"rate": self._rate, "channels": self._channels, "max_samples": self._max_samples}
        return [Asked(clip, futures=[self._pool.sound(clip, **wanted)]) for clip in clips]

    def make(self, asked: Asked, sample: Sample) -> list[Sample]:
        """Return samples [n, channels], or the encoder's steps; what was cut off counts in these."""
        sound: DecodedSound = asked.take()
        samples, lost = torch.from_numpy(sound.samples.copy()), sound.lost
        sound.release()
        if self._encoder is None:
            return self._made(sample, [samples], lost)
        encoded = list(self._encoder.encode(samples).values())
        cut = lost * len(encoded[0]) // max(1, len(samples))
        return self._made(sample, encoded, max(cut, int(lost > 0)))

    def _made(self, sample: Sample, tensors: Sequence[torch.Tensor], lost: int) -> list[Sample]:
        arrays = [to_stored(t, a) for t, a in zip(tensors, self._field.arrays, strict=True)]
        return [replace(sample, arrays=arrays, tokens=len(arrays[0]), lost_tokens=lost)]


def to_stored(tensor: torch.Tensor, array: FieldArray) -> Array:
    """Return values, or ids, as they are stored. Raises ClipError if a value is not finite."""
    kept = tensor.to("cpu", torch_dtype(array.dtype)).contiguous()
    if kept.is_floating_point() and not bool(torch.isfinite(kept).all()):
        raise ClipError("non_finite", f"the sound has NaN or infinity, as {array.dtype}")
    return as_numpy(kept)


def _check_shapes(field: FieldManifest, encoder: SoundEncoder) -> None:
    """Raise EncoderError if an encoder gives other shapes than were planned."""
    shapes = [array.shape for array in sound_arrays(encoder.arrays)]
    if shapes != [array.shape for array in field.arrays]:
        raise EncoderError(
            f"the encoder of sound gives {shapes}, and the field was planned otherwise"
        )
