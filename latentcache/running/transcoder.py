"""Clips of another cache, decoded by its encoder and encoded by this one's, as floats in between.

Nothing is rounded to uint8 on the way: that would be another transform.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its common name

from latentcache.config.sections import Config
from latentcache.core import posterior
from latentcache.core.drift import drift
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.records import ChunkRef, Clip, ClipResult, PictureFacts
from latentcache.core.spec import LatentSpec
from latentcache.corpus.cached import ParentRows, duration_of, identity_of, times_of
from latentcache.decoders.frames import cover_and_crop, select_frames
from latentcache.encoders import out_of_memory
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import Decoder, means_of, resolve_stored, to_stored
from latentcache.encoders.values import EncodesValues
from latentcache.errors import CacheError, ClipError, CorruptionError, EncoderError, SourceError
from latentcache.format.manifest import Manifest
from latentcache.format.shards import get_format
from latentcache.planning.decoded import ALLOW
from latentcache.running.start import loaded
from latentcache.storage.cache_urls import split_clip_url
from latentcache.storage.urls import redact, redact_url

#: What the column `decoder` says of clips that no file was decoded for.
NAME = "latentcache"


@dataclass(frozen=True, kw_only=True)
class Given:
    """A parent's clip as it was read. latents: one sample, as it is stored; row: of its sample table."""

    latents: torch.Tensor
    row: Mapping[str, Any]


class Transcoder:
    """Reads, decodes and encodes clips. `read` is safe to use from several threads; `encode` takes turns.

    The parent's encoder is loaded with the first clip. Raises EncoderError if the cache's own encoder takes
    only uint8.
    """

    def __init__(
        self, config: Config, manifest: Manifest, encoder: Encoder, device: torch.device
    ) -> None:
        self._config, self._manifest, self._device = config, manifest, device
        self._encoder = EncodesValues(encoder)
        self._rows = ParentRows(config.corpus.storage_options, config.corpus.schemes)
        self._finding = threading.Lock()
        self._decoder: tuple[Manifest, Decoder] | None = None

    def read(self, clip: Clip) -> Given:
        """Read a clip's latents.

        Raises ClipError where its bytes are damaged or others than those that were planned; SourceError if
        its cache, or its sample table, is gone or another one.
        """
        with self._finding:
            row, parent = self._find(clip)
        storage, _ = self._rows.cache(clip.url)
        if identity_of(parent.fingerprint, row) != clip.identity:
            raise ClipError(
                "source_changed",
                f"{redact_url(clip.url)} is not the clip that was planned: its stored bytes are others",
            )
        _, bucket, shard, _ = split_clip_url(clip.url)
        layout = parent.layouts()[bucket]
        latents = torch.empty(layout.shape, dtype=torch_dtype(layout.dtype))
        chunk = ChunkRef(**{name: row[name] for name in ("row", "offset", "length", "crc32c")})
        member = get_format(parent.format)
        try:
            member.read(storage, layout, shard, [chunk], [as_numpy(latents)])
        except CorruptionError as error:
            if storage.exists(member.path(layout, shard)):
                raise ClipError("corrupt", str(error)) from error
            raise _gone(error) from error
        return Given(latents=latents, row=row)

    def _find(self, clip: Clip) -> tuple[dict[str, Any], Manifest]:
        try:
            _, manifest = self._rows.cache(clip.url)
            self._check_parent(clip, manifest)
            return self._rows.row(clip.url), manifest
        except CacheError as error:
            raise _gone(error) from error

    def _check_parent(self, clip: Clip, found: Manifest) -> None:
        wanted = self._manifest.provenance.parent
        if found.fingerprint != wanted:
            raise CacheError(
                f"{redact_url(clip.url)} is in another cache ({found.fingerprint[:12]}) than the one that "
                f"was planned ({str(wanted)[:12]})"
            )

    def encode(self, clip: Clip, given: Given) -> tuple[Array, ClipResult]:
        """Decode and encode a clip; returns what is stored, and facts of it. Raises ClipError."""
        parent, decoder = self._decoder_of(clip)
        try:
            decoded = decoder.decode_values(given.latents)
        except torch.OutOfMemoryError as error:
            raise EncoderError(
                f"{parent.spec.model_class} has no GPU memory to decode a clip of {given.row['bucket']} "
                f"({error}). Use a larger GPU"
            ) from error
        indices = _frames_of(clip, given.row, len(decoded))
        values, picture = _fit(decoded[indices], clip, self._config.clips.interpolation, given.row)
        encoded = out_of_memory.encode(self._encoder, values[None])
        row = to_stored(encoded, clip.key, self._manifest.spec)
        is_prefix = np.array_equal(indices, np.arange(len(indices)))
        same_size = tuple(decoded.shape[1:3]) == (clip.height, clip.width)
        moved = None
        if self._manifest.provenance.kind == "roundtrip" and is_prefix and same_size:
            before = means_of(given.latents, parent.spec.stored)
            moved = drift(before, _means(encoded, self._manifest.spec))
        start_s, end_s = _times(clip, given.row)
        return row, ClipResult(
            start_s=start_s,
            end_s=end_s,
            source_height=decoded.shape[1],
            source_width=decoded.shape[2],
            picture=picture,
            decoder=NAME,
            drift=moved,
        )

    def _decoder_of(self, clip: Clip) -> tuple[Manifest, Decoder]:
        """Return the parent, and its encoder, which is loaded once. Raises ConfigError, EncoderError."""
        if self._decoder is None:
            manifest = self._rows.cache(clip.url)[1]
            changes = self._config.corpus.decoder
            resolve_stored(manifest, changes, ALLOW)  # to say how to allow it here
            decoder = loaded(lambda: Decoder(manifest, changes, self._device), self._config.run)
            self._decoder = (manifest, decoder)
        return self._decoder


def _gone(error: CacheError) -> SourceError:
    return SourceError(
        f"the corpus cannot be read: {redact(str(error)).rstrip('.')}. No clip was recorded as failed for "
        "it. If the cache was compacted and cleaned since, run precompute with it again, which plans what "
        "it holds now"
    )


def _frames_of(clip: Clip, row: Mapping[str, Any], num_decoded: int) -> Any:
    """Return the indices of the decoded frames that a clip samples. Raises ClipError("truncated")."""
    duration_s = duration_of(row)
    if clip.kind == "image" or clip.fps is None or not duration_s:
        indices = np.arange(clip.start, clip.start + clip.frames)
    else:
        indices = select_frames(times_of(row), duration_s, clip.start, clip.frames, clip.fps)
    if indices[-1] >= num_decoded:
        raise ClipError(
            "truncated",
            f"the clip needs frame {indices[-1]}, and the latents of its source decode to {num_decoded} "
            "frames. Set clips.frames to what they give",
        )
    return indices


def _fit(
    frames_THWC: torch.Tensor, clip: Clip, interpolation: str, row: Mapping[str, Any]
) -> tuple[torch.Tensor, PictureFacts]:
    """Resize (antialiased) and centre-crop float frames to a clip's size, within [-1, 1]."""
    height, width = frames_THWC.shape[1:3]
    resized, (top, left) = cover_and_crop((height, width), (clip.height, clip.width))
    if resized != (height, width):
        frames_THWC = (
            F.interpolate(
                frames_THWC.permute(0, 3, 1, 2),
                size=resized,
                mode=interpolation,
                antialias=True,
                align_corners=False,
            )
            .clamp_(-1, 1)
            .permute(0, 2, 3, 1)
        )
    duration_s = duration_of(row)
    facts = PictureFacts(
        source_fps=row["frames"] / duration_s if duration_s else None,
        display_height=height,
        display_width=width,
        interlaced=False,
        transfer="SDR",
        resized_height=resized[0],
        resized_width=resized[1],
        crop_top=top,
        crop_left=left,
    )
    return frames_THWC[:, top : top + clip.height, left : left + clip.width], facts


def _means(encoded: torch.Tensor, spec: LatentSpec) -> torch.Tensor:
    """Return the new latents [C, t, h, w] before they are rounded to the stored type; or the ids."""
    if spec.ids is not None or encoded.shape[1] == spec.channels:
        return encoded[0].cpu()
    return posterior.split(encoded)[0][0].cpu()


def _times(clip: Clip, row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return when a clip begins and ends in the parent's own source, in s."""
    start_s, duration_s = row["start_s"], duration_of(row)
    if start_s is None or not duration_s:
        return start_s, row["end_s"]
    step_s = 1 / clip.fps if clip.fps else duration_s / row["frames"]
    begin_s = start_s + clip.start * step_s
    return begin_s, begin_s + clip.frames * step_s
