"""Repeat: sampled clips are decoded and encoded again, and compared with what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from latentcache import encoders
from latentcache.core.dtypes import Array, as_numpy
from latentcache.core.records import ClipId
from latentcache.core.spec import LatentSpec
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.encoders import out_of_memory
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import to_stored
from latentcache.errors import ClipError, SourceError
from latentcache.planning.planned import PlannedCache
from latentcache.reading.cache import Cache
from latentcache.running.start import loaded
from latentcache.running.transcoder import Transcoder

#: How far an encoding may be off: RMS of the difference over that of the latents; for ids, the fraction
#: that differs. The same build on a CPU repeats itself bit for bit. Another GPU or kernel rounds
#: differently: bfloat16 keeps 8 bits, 0.004 of a value. Latents of another clip or model differ by about 1.
TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What a clip gave this time. difference: see TOLERANCE; 0 if every bit is the same.

    problem: why the clip was not encoded again, such as a missing source; else None. is_unread: whether
    that is trouble of its source's storage, which is no evidence of anything.
    """

    place: ClipId
    key: str
    difference: float = 0.0
    problem: str | None = None
    is_unread: bool = False

    @property
    def ok(self) -> bool:
        """Whether it matches what is stored; a missing source says nothing about the cache."""
        return self.difference <= TOLERANCE


def repeat(
    planned: PlannedCache, cache: Cache, places: Sequence[ClipId], device: torch.device
) -> Iterator[Repeated]:
    """Decode and encode clips of a snapshot again, one after the other, and yield how far each is off."""
    module, config = encoders.resolve(planned.config.encoder)
    encoder = loaded(
        lambda: module.build(config, spec=planned.manifest.spec, device=device), planned.config.run
    )
    if planned.manifest.provenance.parent is not None:
        transcoder = Transcoder(planned.config, planned.manifest, encoder, device)
        yield from _transcoded(planned, cache, places, transcoder)
        return
    with DecodePool.for_run(planned.config, num_processes=1, num_buffers=1) as pool:
        for place in places:
            stored = as_numpy(cache.read_row(place))
            clip = planned.plan.shard(place.shard).clips[place.row]
            try:
                again = _encode(pool.decode(clip), encoder, clip.key, planned.manifest.spec)
            except (ClipError, SourceError) as error:
                yield _not_encoded(place, clip.key, error)
            else:
                yield Repeated(place=place, key=clip.key, difference=difference(stored, again))


def _transcoded(
    planned: PlannedCache, cache: Cache, places: Sequence[ClipId], transcoder: Transcoder
) -> Iterator[Repeated]:
    for place in places:
        stored = as_numpy(cache.read_row(place))
        clip = planned.plan.shard(place.shard).clips[place.row]
        try:
            again, _ = transcoder.encode(clip, transcoder.read(clip))
        except (ClipError, SourceError) as error:
            yield _not_encoded(place, clip.key, error)
        else:
            yield Repeated(place=place, key=clip.key, difference=difference(stored, again))


def _not_encoded(place: ClipId, key: str, error: ClipError | SourceError) -> Repeated:
    is_unread = isinstance(error, SourceError)
    return Repeated(place=place, key=key, problem=str(error), is_unread=is_unread)


def difference(stored: Array, again: Array) -> float:
    """Return the RMS of the difference over the RMS of what is stored; for ids, the differing fraction."""
    if stored.tobytes() == again.tobytes():
        return 0.0
    if np.issubdtype(stored.dtype, np.integer):
        return float((stored != again).mean())
    a, b = stored.astype(np.float64), again.astype(np.float64)
    scale = np.sqrt(np.mean(a**2))
    return float(np.sqrt(np.mean((a - b) ** 2)) / scale) if scale else float("inf")


def _encode(future: Future[DecodedClip], encoder: Encoder, key: str, spec: LatentSpec) -> Array:
    decoded = future.result()
    try:
        pixels = torch.from_numpy(decoded.pixels)[None]
        return to_stored(out_of_memory.encode(encoder, pixels), key, spec)
    finally:
        decoded.release()
