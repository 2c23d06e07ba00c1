"""Cached clips beside their sources: what a latent decodes to, and the pixels that it was made from.

For people who look: the report and the preview. Sources are decoded as the run decoded them, from the
plan's rows. Models are built as `Cache.decode` builds them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from latentcache.config.sections import Config
from latentcache.core.image_quality import Quality, compare
from latentcache.core.records import Clip, ClipId
from latentcache.decoders.pool import DecodePool
from latentcache.encoders.stored import Decoder
from latentcache.errors import ClipError, EncoderError, SourceError
from latentcache.planning.planned import PlanReader
from latentcache.reading.cache import Cache
from latentcache.running.start import loaded
from latentcache.storage.cache_urls import is_cache_url
from latentcache.storage.urls import public_name

#: Frames per second of clips of which no rate is known, among them images.
UNKNOWN_FPS = 1.0
#: Why imported clips have no source to be looked at.
NO_PIXELS = "it was imported as latents, and has no pixels to compare with"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A decoded clip and its source: uint8 [T, H, W, 3]; for T see `image_quality.compare`.

    source, quality: None if the source was not wanted or is not available; `problem` then says why not.
    """

    place: ClipId
    clip: Clip
    fps: float
    decoded: torch.Tensor
    source: torch.Tensor | None = None
    problem: str | None = None
    quality: Quality | None = None


class PairReader:
    """Reads pairs. Not safe to use from several threads; close it to end its decoding process.

    config: the cache's, changed for what is elsewhere here, such as `encoder.model`.
    """

    def __init__(self, cache: Cache, config: Config, device: torch.device | None = None) -> None:
        self.cache = cache
        self._config = config
        self._device = device
        self._plan = PlanReader(cache.storage, cache.manifest)
        self._pool = DecodePool.for_run(config, num_processes=1, num_buffers=1)
        self._trouble: str | None = None

    def __enter__(self) -> PairReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The model, loaded at first use. Raises ConfigError, RecipeMismatchError, EncoderError."""
        config, manifest = self._config, self.cache.manifest
        return loaded(lambda: Decoder(manifest, config.encoder, self._device), config.run)

    def clip(self, place: ClipId) -> Clip:
        """Return the plan's row of a clip."""
        return self._plan.shard(place.shard).clips[place.row]

    def latents(self, place: ClipId) -> torch.Tensor:
        """Read one stored sample. Raises CorruptionError."""
        return self.cache.read_row(place)

    def pair(self, place: ClipId, *, source: bool = True) -> Pair:
        """Decode a clip, and its source if it is wanted. Raises CorruptionError and EncoderError."""
        clip = self.clip(place)
        decoded = self._decode(place)
        pixels, problem = self._source(clip) if source else (None, None)
        return Pair(
            place=place,
            clip=clip,
            fps=self._fps(place, clip),
            decoded=decoded,
            source=pixels,
            problem=problem,
            quality=None if pixels is None else compare(decoded, pixels),
        )

    def _decode(self, place: ClipId) -> torch.Tensor:
        try:
            return self.decoder.decode(self.latents(place))
        except torch.OutOfMemoryError as error:
            raise EncoderError(
                f"the GPU's memory is too small to decode a clip of {place.shard.bucket} ({error}). "
                "Decode it with --device cpu, which is slower."
            ) from error

    def _source(self, clip: Clip) -> tuple[torch.Tensor | None, str | None]:
        """Return the source's pixels, or why there are none.

        What keeps one source from being read, such as a corpus that is away, is waited for once only.
        """
        if not self.cache.manifest.provenance.has_pixels:
            return None, NO_PIXELS
        if is_cache_url(clip.url):
            return None, f"its source is a clip of another cache, {public_name(clip.url)}"
        if self._trouble is not None:
            return (
                None,
                f"it was not tried, because an earlier one could not be read: {self._trouble}",
            )
        try:
            decoded = self._pool.decode(clip).result()
        except ClipError as error:
            return None, f"{error.reason}: {error}"
        except SourceError as error:
            self._trouble = str(error)
            return None, self._trouble
        try:
            return torch.from_numpy(decoded.pixels.copy()), None
        finally:
            decoded.release()

    def _fps(self, place: ClipId, clip: Clip) -> float:
        """Return a clip's frames per second: its sampling rate, or its source's own on average.

        One that does not say its times, as an imported one may not, is shown at UNKNOWN_FPS.
        """
        if clip.fps is not None:
            return clip.fps
        rows = self.cache.rows(*place.shard)
        position = [rows.position(place.row)]
        start_s, end_s = (rows.column(name, position)[0] for name in ("start_s", "end_s"))
        if start_s is None or end_s is None or end_s <= start_s:
            return UNKNOWN_FPS
        return clip.frames / float(end_s - start_s)
