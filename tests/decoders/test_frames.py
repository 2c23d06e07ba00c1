"""Which frames a clip samples, and the geometry of resizing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentcache.decoders.frames import (
    cover_and_crop,
    fit_frame,
    num_sampled_frames,
    select_frames,
)
from latentcache.errors import ClipError


def test_native_rate_takes_every_frame() -> None:
    times_s = np.arange(10) / 25
    assert select_frames(times_s, 0.4, 3, 4, None).tolist() == [3, 4, 5, 6]


def test_lower_rate_takes_the_nearest_presentation_time() -> None:
    times_s = np.arange(49) / 8
    assert num_sampled_frames(49, 6.125, 4.0) == 25
    assert select_frames(times_s, 6.125, 0, 25, 4.0).tolist() == list(range(0, 49, 2))


def test_higher_rate_repeats_frames() -> None:
    times_s = np.arange(4) / 4
    assert select_frames(times_s, 1.0, 0, 8, 8.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_variable_rate_goes_by_time_and_not_by_index() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 2.0])
    assert select_frames(times_s, 2.1, 0, 3, 1.0).tolist() == [0, 3, 5]


def test_times_that_do_not_start_at_zero_count_from_the_first_frame() -> None:
    times_s = 5.0 + np.arange(8) / 8
    assert select_frames(times_s, 6.0, 1, 3, 4.0).tolist() == [2, 4, 6]


def test_a_source_that_ends_early_is_truncated() -> None:
    with pytest.raises(
        ClipError, match="needs sampled frames 2 to 7, and the file has 6"
    ) as caught:
        select_frames(np.arange(6) / 6, 1.0, 2, 5, None)
    assert caught.value.reason == "truncated"


@pytest.mark.slow
@given(
    gaps=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=60),
    fps=st.floats(0.5, 60),
)
def test_every_sample_is_a_nearest_frame(gaps: list[float], fps: float) -> None:
    times_s = np.cumsum([0.0, *gaps])[:-1] if len(gaps) > 1 else np.zeros(1)
    end_s = float(times_s[-1]) + gaps[-1]
    count = num_sampled_frames(len(times_s), end_s, fps)
    indices = select_frames(times_s, end_s, 0, count, fps)
    wanted_s = np.arange(count) / fps
    nearest_s = np.abs(times_s[None] - wanted_s[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(times_s[indices] - wanted_s), nearest_s, atol=2e-6)
    assert (np.diff(indices) >= 0).all()
    assert wanted_s[-1] < end_s


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(1, 900))
def test_the_resized_frame_covers_the_target_and_no_more(h: int, w: int, H: int, W: int) -> None:
    (height, width), (top, left) = cover_and_crop((h, w), (H, W))
    assert height >= H
    assert width >= W
    assert height == H or width == W
    assert 0 <= top <= height - H
    assert 0 <= left <= width - W


def test_a_frame_of_the_right_size_is_copied_bit_for_bit() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    out = np.empty_like(frame)
    fit_frame(frame, out, "bicubic")
    np.testing.assert_array_equal(out, frame)


@pytest.mark.parametrize(
    ("interpolation", "pillow"),
    [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_resizing_is_antialiased_as_pillow_does(
    interpolation: str, pillow: Image.Resampling
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    out = np.empty((40, 60, 3), np.uint8)
    fit_frame(frame, out, interpolation)
    expected = np.asarray(Image.fromarray(frame).resize((60, 40), pillow)).astype(int)
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_the_crop_is_in_the_centre() -> None:
    frame = np.zeros((10, 30, 3), np.uint8)
    frame[:, 10:20] = 200
    out = np.empty((10, 10, 3), np.uint8)
    fit_frame(frame, out, "bicubic")
    assert (out == 200).all()
