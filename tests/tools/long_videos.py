"""Long videos with sound, in a moment: one group of pictures is encoded, and written again and again."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 25
#: Pictures from one key frame to the next, if a test says nothing else.
GOP = 50
SAMPLE_RATE = 48_000


@functools.lru_cache(maxsize=8)
def _encoded(
    codec: str, size: tuple[int, int], frames: int, noise: int, options: tuple[tuple[str, str], ...]
) -> Any:
    """Packets (bytes, pts, dts in frames, is key) of one group of pictures."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = size
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, RATE), RATE
    context.gop_size = frames
    context.flags |= 1 << 22  # a global header
    context.options = dict(options)
    rng = np.random.default_rng(0)
    packets = []
    for number in range(frames):
        picture = rng.integers(0, noise, (*size, 3), dtype=np.uint8) + np.uint8(number)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    return [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in packets]


def write_long(
    path: Path,
    seconds: int,
    *,
    size: tuple[int, int] = (180, 320),
    gop: int = GOP,
    noise: int = 64,
    codec: str = "libx264",
    sound: bool = True,
    without: frozenset[int] = frozenset(),
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write a video of 25 frames a second. without: groups of which the last picture is left out.

    container: options of FFmpeg's writer, such as movflags. options: of the encoder.
    """
    packets = _encoded(codec, size, gop, noise, tuple(sorted(options.items())))
    with av.open(str(path), "w", options=container or {}) as target:
        stream = target.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        audio: Any = target.add_stream("aac", rate=SAMPLE_RATE) if sound else None
        samples = 0
        for group in range(seconds * RATE // gop):
            for data, pts, dts, is_key in packets:
                if group in without and pts == gop - 1:
                    continue
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, RATE)
                packet.pts, packet.dts, packet.is_keyframe = (
                    pts + group * gop,
                    dts + group * gop,
                    is_key,
                )
                packet.duration = 1
                target.mux(packet)
                while audio and samples * RATE <= (group * gop + pts) * SAMPLE_RATE:
                    silence = av.AudioFrame.from_ndarray(
                        np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                    )
                    silence.sample_rate, silence.pts = SAMPLE_RATE, samples
                    target.mux(audio.encode(silence))
                    samples += 1024
        if audio:
            target.mux(audio.encode(None))
    return path
