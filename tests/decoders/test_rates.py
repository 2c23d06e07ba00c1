"""The rate that counting goes by is the one that trainers read, however coarsely times are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from latentcache.config.clips import ClipsConfig
from latentcache.decoders import pyav
from latentcache.decoders.clip import indices_of
from latentcache.decoders.facts import VideoFacts
from latentcache.decoders.rates import nominal_rate, rate_of
from latentcache.decoders.source import Reader, Source
from latentcache.planning.plan import num_available

RATES = (Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 60)
CODECS = {"mkv": "libx264", "webm": "libvpx", "mp4": "libx264"}
#: 45 frames at 24 per second last 1.874 s in ms, which are 24.0128 per second, and 29 frames at 16.
SOME = (20, 29, 45, 59)


def diffusion_pipe(frames: int, rate: float) -> list[int]:
    """Return the frames that diffusion-pipe makes of a video; its rate is PyAV's average_rate."""
    return torch.linspace(0, frames - 1, int(frames * 16 / rate)).to(torch.int32).tolist()  # type: ignore[no-any-return]


def fastvideo(frames: int, rate: float) -> list[int]:
    """Return those that FastVideo makes; its data set's rate is torchvision's, which is PyAV's, too."""
    return np.arange(0, frames, rate / 16).astype(int).tolist()


RULES: dict[str, Callable[[int, float], list[int]]] = {
    "linspace": diffusion_pipe,
    "floor": fastvideo,
}


def write(path: Path, frames: int, rate: Fraction | int) -> float:
    """Write a small video; return the rate that PyAV reads."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "deadline": "realtime", "cpu-used": "8"}
        stream: Any = container.add_stream(CODECS[path.suffix[1:]], rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(frames):
            picture = np.full((32, 32, 3), level * 4, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 0)


@contextmanager
def opened(path: Path, *, without_decord: bool) -> Iterator[Reader]:
    with closing(Source(str(path), "video")) as source:
        yield source.reader(without_decord)


def check(path: Path, frames: int, rate: Fraction | int) -> None:
    declared = write(path, frames, rate)
    assert declared == float(rate)
    facts = vars(pyav.probe(str(path)))
    assert facts["fps"] == declared
    for sampling, rule in RULES.items():
        clips = ClipsConfig.model_validate(
            {"frames": 1, "fps": 16, "size": [32, 32], "sampling": sampling}
        )
        wanted = rule(frames, declared)
        assert num_available(clips, facts) == len(wanted)
        request = {"start": 0, "frames": len(wanted), "fps": 16.0, **clips.pixel_rules()}
        for without_decord in (False, True):
            with opened(path, without_decord=without_decord) as reader:
                assert reader.facts.fps == declared
                assert indices_of(reader, request).tolist() == wanted


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", CODECS)
def test_frames_are_those_of_the_declared_rate(
    tmp_path: Path, kind: str, rate: Fraction | int
) -> None:
    for frames in SOME:
        check(tmp_path / f"{frames}.{kind}", frames, rate)


@pytest.mark.long
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", CODECS)
def test_frames_are_those_of_the_declared_rate_at_every_length(
    tmp_path: Path, kind: str, rate: Fraction | int
) -> None:
    for frames in range(20, 61):
        check(tmp_path / f"{frames}.{kind}", frames, rate)


def test_a_rate_that_the_times_contradict_is_not_taken() -> None:
    facts = VideoFacts(declared_fps=24.0, tick_s=0.001)
    assert rate_of(facts, 45, 1.874) == 24.0  # rounded to ms
    assert rate_of(facts, 45, 1.5) == 30.0
    assert rate_of(facts, 45, 1.8) == 25.0
    assert rate_of(VideoFacts(), 45, 1.8) == 25.0


def test_a_declared_rate_is_taken_to_its_last_digit() -> None:
    facts = VideoFacts(declared_fps=29.9985, tick_s=1 / 90000)
    assert rate_of(facts, 3000, 3000 / 29.9985) == 29.9985


def test_a_rate_of_few_digits_is_the_one_that_is_meant() -> None:
    assert nominal_rate(23.976) == 24000 / 1001
    assert nominal_rate(30.0001) == 30.0
    assert nominal_rate(24.0128) == 24.0128
