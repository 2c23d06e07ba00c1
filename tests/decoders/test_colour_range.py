"""H.264 whose range changes on the way: each picture is converted by its own, wherever decoding starts."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentcache.decoders.frames import Frame
from latentcache.decoders.source import Source
from tests.tools.bad_videos import encode
from tests.tools.odd_videos import packet, packets_of
from tests.tools.videos import read_with_pyav

FRAMES = 8
#: With odd sizes, and in formats that have other chroma.
FORMATS = {"yuv420p": (96, 160), "yuv422p": (98, 150), "yuv444p": (61, 77)}


def part(path: Path, pix_fmt: str, full: str) -> Path:
    params = f"fullrange={full}:colormatrix=bt709"
    options = {"x264-params": params, "bf": "0", "g": "4"}
    size = FORMATS[pix_fmt]
    return encode(path, "libx264", options, frames=FRAMES, size=size, pix_fmt=pix_fmt)


def join(parts: list[Path], path: Path) -> Path:
    with av.open(str(parts[0])) as first, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(first.streams.video[0])
        for number, one in enumerate(p for part in parts for p in packets_of(part)):
            made = packet(bytes(one), one, number, number)
            made.time_base, made.duration, made.stream = Fraction(1, 24), 1, stream
            out.mux(made)
    return path


def read(path: Path, frames: list[int]) -> Frame:
    with contextlib.closing(Source(str(path), "video")) as source:
        return np.stack(list(source.reader(without_decord=True).frames(np.array(frames))))


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [("on", "off"), ("off", "on"), ("on", "off", "on")])
@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_each_picture_is_converted_by_its_own_range(
    tmp_path: Path, ranges: tuple[str, ...], pix_fmt: str, suffix: str
) -> None:
    parts = [part(tmp_path / f"{n}.ts", pix_fmt, full) for n, full in enumerate(ranges)]
    path = join(parts, tmp_path / f"whole{suffix}")
    expected = np.concatenate([read_with_pyav(one) for one in parts])
    every = list(range(len(expected)))
    # decord refuses pictures after a change, or gives the same
    for frames in (every, every[4:12], every[9:]):
        np.testing.assert_array_equal(read(path, frames), expected[frames])
