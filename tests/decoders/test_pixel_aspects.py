"""Pixels whose shape changes in a video, while its size stays: each clip is shown by its own frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentcache.decoders import pyav
from latentcache.decoders.aspects import aspect_of
from latentcache.decoders.clip import decode_clip
from latentcache.decoders.frames import fit_frame
from latentcache.decoders.index import read_index
from latentcache.decoders.source import Reader, Source
from latentcache.errors import ClipError
from tests.tools.anamorphic_videos import (
    FRAMES,
    SHAPES,
    SIZE,
    described_twice,
    of_two_shapes,
    without_declared_shape,
)
from tests.tools.bad_videos import encode
from tests.tools.videos import read_with_pyav

#: Containers that leave the shape to the pictures.
SILENT = [
    ("mpeg2video", "ts"), ("mpeg2video", "mpg"), ("mpeg2video", "mkv"), ("mpeg2video", "avi"),
    ("libx264", "ts"), ("libx264", "mkv"), ("libx264", "avi"), ("libx265", "ts"), ("libx265", "mkv"),
    ("mpeg4", "ts"), ("mpeg4", "mpg"), ("mpeg4", "avi"),
]  # fmt: skip
IN_MP4 = ["mpeg2video", "libx264", "libx265", "mpeg4"]
ONE, OTHER = map(float, SHAPES)


@contextlib.contextmanager
def opened(path: Path, without_decord: bool) -> Iterator[Reader]:
    with contextlib.closing(Source(str(path), "video")) as source:
        yield source.reader(without_decord)


def shown_size(reader: Reader, start: int, frames: int = 4) -> tuple[int, int]:
    """The size that a clip is shown at, after a look at its pixels."""
    request = {"start": start, "frames": frames, "fps": None, "interpolation": "bicubic"}
    out = np.empty((frames, 64, 64, 3), np.uint8)
    answer = decode_clip(reader, request, out)
    aspect = OTHER if answer["picture"]["display_width"] > SIZE[1] else ONE
    expected = np.empty_like(out)
    for frame, into in zip(reader.frames(np.arange(start, start + frames)), expected, strict=True):
        fit_frame(frame, into, "bicubic", aspect)
    np.testing.assert_array_equal(out, expected)
    return answer["picture"]["display_height"], answer["picture"]["display_width"]


def check(path: Path, before: float, after: float) -> None:
    sizes = [(SIZE[0], round(SIZE[1] * aspect)) for aspect in (before, after)]
    info = pyav.probe(str(path))
    assert (info.height, info.width) == sizes[0]
    for without_decord in (False, True):
        with opened(path, without_decord) as reader:
            assert shown_size(reader, 0) == sizes[0]
            assert shown_size(reader, FRAMES + 4) == sizes[1]
            assert shown_size(reader, 0) == sizes[0]
            if before == after:
                assert shown_size(reader, FRAMES - 2) == sizes[0]
            else:
                with pytest.raises(ClipError, match=f"pixels of frame {FRAMES} are") as caught:
                    shown_size(reader, FRAMES - 2)
                assert caught.value.reason == "size_changed"
            alone = []
            for number in range(2 * FRAMES):
                list(reader.frames(np.array([number])))
                alone.append(reader.facts.pixel_aspect)
            assert alone == pytest.approx([before] * FRAMES + [after] * FRAMES)


@pytest.mark.parametrize("is_reversed", [False, True], ids=["wider", "narrower"])
@pytest.mark.parametrize(("codec", "suffix"), SILENT, ids=map(".".join, SILENT))
def test_a_clip_has_the_shape_of_its_own_pixels(
    tmp_path: Path, codec: str, suffix: str, is_reversed: bool
) -> None:
    shapes = SHAPES[::-1] if is_reversed else SHAPES
    path = of_two_shapes(tmp_path / f"v.{suffix}", codec, shapes)
    check(path, *map(float, shapes))


@pytest.mark.parametrize("codec", IN_MP4)
def test_what_a_container_declares_counts_for_all_pictures(tmp_path: Path, codec: str) -> None:
    path = of_two_shapes(tmp_path / "v.mp4", codec, SHAPES[::-1])
    check(path, OTHER, OTHER)


@pytest.mark.parametrize("codec", IN_MP4)
def test_an_mp4_that_declares_nothing_leaves_it_to_the_pictures(tmp_path: Path, codec: str) -> None:
    path = of_two_shapes(tmp_path / "v.mp4", codec, SHAPES[::-1])
    check(without_declared_shape(path), OTHER, ONE)


def test_videos_of_which_decord_does_not_tell_the_shape_are_not_for_it(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        path = encode(tmp_path / f"v.{suffix}", options={"x264-params": "repeat-headers=1"})
        assert read_index(str(path)).suits_decord  # the same parameter sets again
        assert not read_index(str(of_two_shapes(path, "libx264"))).suits_decord
    path = encode(tmp_path / "v.mp4")
    assert read_index(str(path)).suits_decord
    described_twice(path)
    assert not read_index(str(path)).suits_decord
    with opened(path, without_decord=False) as reader:
        frames = np.stack(list(reader.frames(np.arange(len(reader.times_s)))))
    np.testing.assert_array_equal(frames, read_with_pyav(path))


@pytest.mark.parametrize(
    ("declared", "aspect"),
    [
        (None, 1),
        (Fraction(4), 4),
        (Fraction(1, 4), 0.25),
        (Fraction(17, 4), 1),
        (Fraction(1, 5), 1),
    ],
)
def test_a_shape_that_no_pixel_has_is_damage(declared: Fraction | None, aspect: float) -> None:
    assert aspect_of(declared) == aspect
