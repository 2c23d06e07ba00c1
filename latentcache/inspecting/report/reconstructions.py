"""What the contact sheet shows of a clip, and the quality by a frame's position in its group. Pure."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from latentcache.core.image_quality import Quality, psnr_db
from latentcache.core.spec import LatentSpec
from latentcache.decoders.frames import Frame
from latentcache.inspecting.clip_reader import Pair
from latentcache.inspecting.preview import frames_of, mp4_bytes

#: Frames of a clip that are shown.
NUM_FRAMES = 4
#: Widths to try, until the pictures of a clip fit into their share of the page.
WIDTHS = (384, 256, 160, 96)
WEBP_QUALITY = 80
#: Of h264: smaller files than the preview's, for the page has them all.
FILM_CRF = 26


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One frame, counted from 0, as data URIs. source: None if it is not available."""

    frame: int
    decoded: str
    source: str | None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip of the contact sheet, without its pixels. film: of it, as a data URI; none of a picture."""

    key: str
    source: str
    bucket: str
    caption: str | None
    start: int
    frames: int
    fps: float
    problem: str | None
    quality: Quality | None
    thumbnails: tuple[Thumbnail, ...]
    film: str | None = None


def show(pair: Pair, max_bytes: int) -> Shown:
    """Return what is shown of a pair, in at most about `max_bytes`; half of that is for the film."""
    clip = pair.clip
    for width in WIDTHS:
        thumbnails = _thumbnails(pair, width)
        if sum(len(t.decoded) + len(t.source or "") for t in thumbnails) <= max_bytes // 2:
            break
    return Shown(
        key=clip.key,
        source=clip.source,
        bucket=pair.place.shard.bucket,
        caption=clip.caption,
        start=clip.start,
        frames=clip.frames,
        fps=pair.fps,
        problem=pair.problem,
        quality=pair.quality,
        thumbnails=thumbnails,
        film=_film(pair, max_bytes // 2),
    )


def _film(pair: Pair, max_bytes: int) -> str | None:
    """Return a clip beside its source as a data URI; None of a picture, or if it takes too many bytes."""
    if len(pair.decoded) < 2:
        return None
    for width in WIDTHS:
        frames = (_reduced(frame, 2 * width) for frame in frames_of(pair))
        data = mp4_bytes(frames, pair.fps, quality=FILM_CRF)
        if len(data) * 4 // 3 <= max_bytes:
            return "data:video/mp4;base64," + base64.b64encode(data).decode()
    return None


def _reduced(frame: Frame, width: int) -> Frame:
    if frame.shape[1] <= width:
        return frame
    height = max(2, round(frame.shape[0] * width / frame.shape[1]))
    return np.asarray(Image.fromarray(frame).resize((width, height)))


def _thumbnails(pair: Pair, width: int) -> tuple[Thumbnail, ...]:
    last = len(pair.decoded) - 1
    frames = np.unique(np.linspace(0, last, NUM_FRAMES).round().astype(int)).tolist()
    return tuple(
        Thumbnail(
            frame=frame,
            decoded=_data_uri(pair.decoded[frame], width),
            source=None if pair.source is None else _data_uri(pair.source[frame], width),
        )
        for frame in frames
    )


def _data_uri(frame_HWC: torch.Tensor, width: int) -> str:
    image = Image.fromarray(frame_HWC.numpy())
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def psnr_by_position(clips: Iterable[tuple[Quality, int]], spec: LatentSpec) -> dict[str, float]:
    """Return the PSNR in dB of each position in a frame group, from the mean error over clips and groups.

    clips: qualities, and frames that were encoded. A shorter group, such as the first frame of 1 + 4k,
    which stands by itself, has its own positions: `first`.
    """
    errors: dict[str, list[float]] = {}
    stride = spec.stride[0]
    for quality, frames in clips:
        for t in range(-(-frames // stride)):
            start, end = spec.pixel_frames(t, frames)
            for position, error in enumerate(quality.mse[start:end], 1):
                errors.setdefault(_position(position, end - start, stride), []).append(error)
    return {
        name: psnr_db(sum(found) / len(found)) for name, found in sorted(errors.items(), key=_order)
    }


def _position(position: int, length: int, stride: int) -> str:
    if length == stride:
        return str(position)
    return "first" if length == 1 else f"first {position}"


def _order(item: tuple[str, object]) -> tuple[bool, int]:
    name = item[0]
    number = name.removeprefix("first").strip()
    return (not name.startswith("first"), int(number or 0))
