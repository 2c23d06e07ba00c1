"""Pairs as playable files: a clip beside its source as mp4, an image as PNG, and a grid of all."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from latentcache.decoders.frames import Frame
from latentcache.inspecting.clip_reader import Pair
from latentcache.redaction import printable

#: Encoders, best first: the first available one is used. The second one is in every build of FFmpeg.
ENCODERS = {"libx264": {"crf": "16", "preset": "fast"}, "mpeg4": {"qmin": "2", "qmax": "3"}}
LABEL_HEIGHT, GAP, FONT_SIZE = 24, 6, 15
#: Smaller pictures are enlarged, each pixel to a square, so that there is room for the labels.
MIN_WIDTH = 180
#: Larger ones are reduced in a grid.
CELL_WIDTH = 320
BACKGROUND, INK = (24, 26, 29), (235, 237, 239)
MAX_NAME = 150


def file_name(key: str) -> str:
    """Return a clip's file name without a suffix: letters, digits, `.`, `_` and `-`."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", key.replace("/", "__").replace("#", "-"))
    return name.lstrip(".")[:MAX_NAME] or "clip"


def file_names(keys: Sequence[str]) -> list[str]:
    """Return a name for each clip, all different."""
    names: list[str] = []
    for key in keys:
        name, number = file_name(key), 2
        while name in names:
            name, number = f"{file_name(key)}-{number}", number + 1
        names.append(name)
    return names


def frames_of(pair: Pair) -> Iterator[Frame]:
    """Yield a pair's frames [h, w, 3]: source and decoded side by side, labelled, or only decoded."""
    score = f", {pair.quality.psnr_db:.1f} dB" if pair.quality else ""
    panels = [("decoded" + score, pair.decoded)]
    if pair.source is not None:
        panels.insert(0, ("source", pair.source))
    for t in range(len(pair.decoded)):
        yield beside([labelled(_enlarged(pixels[t]), label) for label, pixels in panels])


def _enlarged(frame_HWC: torch.Tensor) -> Frame:
    factor = max(1, math.ceil(MIN_WIDTH / frame_HWC.shape[1]))
    pixels: Frame = frame_HWC.numpy()
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def labelled(frame: Frame, label: str) -> Frame:
    """Return a frame [h, w, 3] with a line of text above."""
    strip = Image.new("RGB", (frame.shape[1], LABEL_HEIGHT), BACKGROUND)
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(strip).text(
        (6, LABEL_HEIGHT // 2), printable(label), INK, font=font, anchor="lm"
    )
    return np.concatenate([np.asarray(strip), frame])


def beside(frames: Sequence[Frame]) -> Frame:
    """Return frames of one height next to each other."""
    gap = np.full((frames[0].shape[0], GAP, 3), BACKGROUND, np.uint8)
    parts = [part for frame in frames for part in (gap, frame)]
    return np.concatenate(parts[1:], axis=1)


def tiled(clips: Sequence[tuple[Sequence[Frame], float]]) -> tuple[Iterator[Frame], float]:
    """Return the frames of a grid of clips, and its frames per second: the clips' highest.

    clips: frames and frames per second of each. A clip that ends before the others stays on its last frame.
    """
    fps = max(rate for _, rate in clips)
    last_s = max((len(frames) - 1) / rate for frames, rate in clips)
    times_s = (n / fps for n in range(round(last_s * fps) + 1))
    return (_grid([_at(frames, rate, time_s) for frames, rate in clips]) for time_s in times_s), fps


def _at(frames: Sequence[Frame], fps: float, time_s: float) -> Frame:
    # Without this margin, rounding could show the frame before the one that starts at this time.
    return frames[min(int(time_s * fps + 1e-6), len(frames) - 1)]


def _grid(cells: Sequence[Frame]) -> Frame:
    height, width = (max(cell.shape[axis] for cell in cells) + GAP for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(cells) * height / width))
    rows = math.ceil(len(cells) / columns)
    canvas = np.empty((rows * height, columns * width, 3), np.uint8)
    canvas[:] = BACKGROUND
    for n, cell in enumerate(cells):
        top, left = n // columns * height, n % columns * width
        canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return canvas


def cell_of(pair: Pair) -> list[Frame]:
    """Return a pair's frames in a size for the grid, with its key above."""
    return [labelled(_reduced(frame), pair.clip.key) for frame in frames_of(pair)]


def _reduced(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    if width <= 2 * CELL_WIDTH:
        return frame
    size = (2 * CELL_WIDTH, max(1, round(height * 2 * CELL_WIDTH / width)))
    return np.asarray(Image.fromarray(frame).resize(size))


def write_png(path: Path, frame: Frame) -> None:
    """Write one picture."""
    Image.fromarray(frame).save(path, "PNG")


def write_mp4(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Write frames of one size as h264, or as MPEG-4 part 2 if FFmpeg has no h264 encoder."""
    with path.open("wb") as file:
        _encode(file, frames, fps, {})


def mp4_bytes(frames: Iterable[Frame], fps: float, quality: int) -> bytes:
    """Return such a file for a page. quality: the crf of h264."""
    file = io.BytesIO()
    _encode(file, frames, fps, {"crf": str(quality)})
    return file.getvalue()


def _encode(
    file: BinaryIO, frames: Iterable[Frame], fps: float, options: Mapping[str, str]
) -> None:
    name = next(name for name in ENCODERS if name in av.codecs_available)
    known = {key: options.get(key, value) for key, value in ENCODERS[name].items()}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            name, rate=Fraction(fps).limit_denominator(1001), options=known
        )
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
