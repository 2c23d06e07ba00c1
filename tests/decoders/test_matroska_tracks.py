"""Matroska's tracks can stand anywhere in a file: what they say of the pictures is never missed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
import pytest

from latentcache.decoders import pyav
from latentcache.decoders.frames import Frame
from latentcache.decoders.matroska import Layout
from latentcache.decoders.source import Source
from latentcache.errors import ClipError
from tests.tools import further_videos as kinds
from tests.tools.bad_videos import encode
from tests.tools.matroska_videos import before_tracks, tracks_at_the_end, void
from tests.tools.ranged_bytes import ranged

#: Where the tracks are put.
PLACES: dict[str, Callable[[Path], Path]] = {
    "end": tracks_at_the_end,
    "end, by three seek heads": lambda path: tracks_at_the_end(path, through=3),
    "behind 70 KB": lambda path: before_tracks(path, void(70_000)),
    "behind 900 elements": lambda path: before_tracks(path, 900 * void(9)),
}


def frames_of(path: Path, without_decord: bool = False) -> tuple[str, Frame]:
    info = pyav.probe(str(path))
    with contextlib.closing(Source(str(path), "video")) as source:
        reader = source.reader(without_decord)
        frames = np.stack(list(reader.frames(np.arange(info.frames))))
    assert frames.shape[1:3] == (info.height, info.width)
    return reader.name, frames


def assert_pyav_shows(path: Path, expected: Frame) -> None:
    """PyAV shows these frames, whether decord may be tried or not."""
    for without_decord in (False, True):
        name, frames = frames_of(path, without_decord)
        assert name == "pyav"
        np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("degrees", [90, 180])
def test_a_turned_video_is_shown_turned(tmp_path: Path, degrees: int, place: str) -> None:
    path = tmp_path / "v.mkv"
    kinds.turned(degrees)(path)
    _, expected = frames_of(path, without_decord=True)
    assert_pyav_shows(PLACES[place](path), expected)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_cut_off_is_not_shown(tmp_path: Path, place: str) -> None:
    path = encode(tmp_path / "v.mkv")
    kinds.with_pixel_crop(path, top=6, bottom=10, left=12, right=4)
    _, expected = frames_of(path)
    assert expected.shape[1:3] == (48, 80)
    assert_pyav_shows(PLACES[place](path), expected)


@pytest.mark.parametrize("place", PLACES)
def test_a_plain_video_is_still_for_decord(tmp_path: Path, place: str) -> None:
    assert frames_of(PLACES[place](encode(tmp_path / "v.mkv")))[0] == "decord"


def test_tracks_that_only_ffmpeg_finds_are_refused(tmp_path: Path) -> None:
    path = before_tracks(encode(tmp_path / "v.mkv"), 2000 * void(9))
    with pytest.raises(ClipError, match="unknown what is cut off its pictures") as caught:
        pyav.probe(str(path))
    assert caught.value.reason == "unreadable"


def test_a_file_that_is_read_by_ranges_has_its_tracks_at_the_end(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mkv", options={"g": "5"}, frames=20)
    found = []
    for _ in range(2):
        layout = Layout(cast("IO[bytes]", ranged(path.read_bytes()).open()))
        found.append((layout.span(0, 0, 500), layout.last_blocks(0, 5)))
        tracks_at_the_end(path)
    assert found[0] == found[1]
