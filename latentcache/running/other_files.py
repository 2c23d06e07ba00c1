"""Files that a field reads beside the clips' sources: control videos, masks and reference images.

They are matched to a clip by its key and by time, never by their order or their frames' numbers.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from latentcache.config.clips import ClipsConfig
from latentcache.core.lru import Lru
from latentcache.core.records import Clip
from latentcache.corpus.source_table import IMAGES
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.decoders.sampling import clip_frames
from latentcache.errors import ClipError
from latentcache.storage.urls import redact_url, without_query

#: Sources and files whose shape and times are kept: neighbours are often clips of one source.
KEPT = 256
Kind = Literal["video", "image"]
#: Aspect ratios may differ by so much: sizes are rounded to what codecs take.
MAX_ASPECT_DIFFERENCE = 0.02


@dataclass(frozen=True, kw_only=True)
class OtherFile:
    """A file that stands beside a clip. source: what is known of the clip's own; rules: sampling."""

    url: str
    kind: Kind
    identity: str
    source: Mapping[str, Any]
    rules: ClipsConfig

    def decode(self, pool: DecodePool, clip: Clip, numbers: Sequence[int]) -> Future[DecodedClip]:
        """Decode the frames that are nearest in time to some of a clip's frames, by their numbers in it."""
        if self.kind == "image" and len(numbers) > 1:
            raise ClipError(
                "input_too_short", f"it is one picture, and the clip has {clip.frames} frames"
            )
        other = replace(
            clip, url=self.url, identity=self.identity, kind=self.kind, frames=len(numbers)
        )
        times_s = [0.0] if self.kind == "image" else self._times_s(clip)[list(numbers)].tolist()
        return pool.decode(other, times_s)

    def _times_s(self, clip: Clip) -> npt.NDArray[np.float64]:
        """Return the times of a clip's frames since the first frame of its source.

        They are those of the frames that it samples, by whatever rule. Raises ClipError("truncated").
        """
        if clip.kind == "image":
            return np.zeros(clip.frames)
        times_s = np.array(self.source["times_s"], np.float64)
        # Of a file that was cut, the probe says what the header does.
        found_s = self.source["duration_s"] * len(times_s) / self.source["frames"]
        rules = self.rules
        source_fps = rules.source_fps or self.source["fps"]
        frames = clip_frames(
            rules.sampling, times_s, found_s, clip.start, clip.frames, clip.fps, source_fps
        )
        if frames[-1] >= len(times_s):
            raise ClipError("truncated", f"the clip's source has {len(times_s)} frames")
        since_first: npt.NDArray[np.float64] = times_s[frames] - times_s[0]
        return since_first


class OtherFiles:
    """Finds them, and what they must fit. One thread at a time.

    All of a shard are looked at before one is decoded: a look takes a buffer, and so does each decoded clip
    until it is encoded.
    """

    def __init__(self, pool: DecodePool, rules: ClipsConfig, *, same_shape: bool) -> None:
        self._pool, self._rules, self._same_shape = pool, rules, same_shape
        self._known: Lru[str, Future[dict[str, Any]]] = Lru(KEPT)

    def find(self, clips: Sequence[Clip], urls: Sequence[str]) -> list[OtherFile | ClipError]:
        """Return the file of each clip, or why it cannot be used; an empty URL is none."""
        for clip, url in zip(clips, urls, strict=True):
            if url:  # all at once, before the first is waited for
                self._look(url, _kind(url))
                self._look(clip.url, clip.kind)
        return [self._find(clip, url) for clip, url in zip(clips, urls, strict=True)]

    def _find(self, clip: Clip, url: str) -> OtherFile | ClipError:
        if not url:
            return ClipError("missing_input", "there is no path in the field's column")
        kind = _kind(url)
        try:
            other, source = self._look(url, kind).result(), self._look(clip.url, clip.kind).result()
            if self._same_shape:
                _check_shape(other, source)
        except ClipError as error:
            return ClipError(error.reason, f"{redact_url(url)}: {error}")
        return OtherFile(
            url=url, kind=kind, identity=other["identity"], source=source, rules=self._rules
        )

    def _look(self, url: str, kind: str) -> Future[dict[str, Any]]:
        return self._known.get_or_make(url, lambda: self._pool.probe(url, kind, times=True))


def _kind(url: str) -> Kind:
    suffix = posixpath.splitext(without_query(url))[1][1:].lower()
    return "image" if suffix in IMAGES else "video"


def _check_shape(other: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Raise ClipError where two files are of other aspect ratios."""
    ratios = [facts["width"] / facts["height"] for facts in (other, source)]
    if abs(ratios[0] / ratios[1] - 1) > MAX_ASPECT_DIFFERENCE:
        raise ClipError(
            "other_shape",
            f"it is {other['width']} x {other['height']} as shown, and the clip's source is "
            f"{source['width']} x {source['height']}, so the crop would show other parts. Give it the "
            "same aspect ratio, or set same_shape: false",
        )
