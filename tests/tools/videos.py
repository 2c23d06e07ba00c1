"""Small real videos, written by the tests through PyAV, and where the shared real ones are."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from latentcache.decoders.frames import Frame

SHARED = Path(
    os.environ.get("LATENTCACHE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")
)
SHARED_VIDEOS = SHARED / "videos"
needs_shared_videos = pytest.mark.skipif(
    not SHARED_VIDEOS.is_dir(), reason=f"no real test videos at {SHARED_VIDEOS}"
)


def moving_pattern(frames: int, height: int, width: int, seed: int = 0) -> Frame:
    """A smooth picture that moves, uint8 [T, H, W, 3]; every seed gives another one."""
    phase = np.random.default_rng(seed).uniform(0, 6, size=(3, 4))
    t, y, x = np.meshgrid(
        np.arange(frames) / 8, np.arange(height) / 16, np.arange(width) / 16, indexing="ij"
    )
    planes = [
        np.sin(x + a + t) + np.sin(y * b + c - t) * np.cos(x * 0.3 + d) for a, b, c, d in phase
    ]
    return np.stack([(127.5 + 60 * plane).clip(0, 255) for plane in planes], axis=-1).astype(
        np.uint8
    )


def write_video(
    path: Path,
    pixels: Frame,
    *,
    fps: int = 24,
    pts: list[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
) -> Path:
    """Encode pixels [T, H, W, 3]. pts: presentation times in 1/1000 s, for variable frame rates."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": str(gop)})
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], pix_fmt
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), pts[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def scaled(frame: av.VideoFrame) -> Frame:
    """A frame in RGB as FFmpeg's own `scale` filter makes it: interlaced ones as if they were not."""
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(template=frame, time_base=Fraction(1, 1000)),
        graph.add("scale", "flags=bilinear"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    )
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def read_with_pyav(path: Path, limit: int = 1 << 30) -> Frame:
    """The first frames of a video as PyAV decodes them, turned as shown: the reference."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            rgb = scaled(frame) if frame.interlaced_frame else frame.to_ndarray(format="rgb24")
            frames.append(np.rot90(rgb, round(frame.rotation / 90) % 4))
            if len(frames) == limit:
                break
    return np.stack(frames)


def write_sound(
    path: Path,
    planes: np.ndarray,
    *,
    rate: int,
    codec: str,
    pixels: Frame | None = None,
    fps: int = 24,
    layout: str = "",
    start_s: float = 0.0,
    gap: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Encode sound, float32 [channels, n], with pixels [T, H, W, 3] or without.

    start_s: when it begins. gap: a second of it, and for how long nothing is heard from there on.
    """
    layout = layout or ("mono" if len(planes) == 1 else "stereo")
    with av.open(str(path), "w") as container:
        video = None if pixels is None else container.add_stream("libx264", rate=fps)
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if video is not None and pixels is not None:
            video.height, video.width, video.pix_fmt = *pixels.shape[1:3], "yuv420p"
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        resampler = av.AudioResampler(
            format=stream.codec_context.format.name, layout=layout, rate=rate
        )
        for at in range(0, planes.shape[1], 1024):
            piece = np.ascontiguousarray(planes[:, at : at + 1024])
            sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            late_s = start_s + (gap[1] if at >= gap[0] * rate else 0)
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = at + round(late_s * rate)
            for ready in resampler.resample(sound):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path
