"""Sizes and ratios that no picture has are refused before anything is computed with them."""

from __future__ import annotations

from typing import Any

import pytest

from latentcache.config.clips import ClipsConfig
from latentcache.config.files import validate
from latentcache.config.geometry import aspect_ratio
from latentcache.errors import ConfigError

HUGE = 10**400


@pytest.mark.parametrize(
    "ratio",
    ["1e300:1e-300", "1e-300:1e300", "1e-320:1e10", "1e308:1e-320", 1e300, 1e-300, "1001:1", 9e-4],
)
def test_a_ratio_that_no_picture_has_is_refused(ratio: float | str) -> None:
    with pytest.raises(ValueError, match=r"is no aspect ratio of 0\.001 to 1000$"):
        aspect_ratio(ratio)
    buckets = {"area": 4096, "multiple": 16, "aspect_ratios": [1, ratio]}
    with pytest.raises(ConfigError, match=r"buckets\.aspect_ratios: .* is no aspect ratio of"):
        validate(ClipsConfig, {"frames": 1, "buckets": buckets}, "clips")


@pytest.mark.parametrize(
    ("ratio", "value"),
    [(1000, 1e3), (0.001, 1e-3), ("1:1000", 1e-3), ("1000:1", 1e3), ("2e300:1e300", 2.0)],
)
def test_the_bounds_are_ratios_and_so_are_those_of_large_numbers(
    ratio: float | str, value: float
) -> None:
    assert aspect_ratio(ratio) == value


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"size": [HUGE, 64]}, "size.0"),
        ({"buckets": {"area": HUGE, "multiple": 16, "aspect_ratios": [1]}}, "buckets.area"),
        ({"buckets": {"area": 4096, "multiple": HUGE, "aspect_ratios": [1]}}, "buckets.multiple"),
        ({"buckets": {"sizes": [[16, HUGE]]}}, "buckets.sizes.0.1"),
    ],
)
def test_sizes_that_no_picture_has_are_refused(settings: dict[str, Any], where: str) -> None:
    says = rf"^clips:\n  {where}: should be less than or equal to \d+; got 10+$"
    with pytest.raises(ConfigError, match=says):
        validate(ClipsConfig, {"frames": 1, **settings}, "clips")


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "simpletuner", "resolution": 64, "aspect_bucket_alignment": HUGE, "num_frames": 1},
        {"preset": "finetrainers", "video_resolution_buckets": [f"1x16x{HUGE}"]},
        {"preset": "fastvideo", "num_frames": 1, "max_height": HUGE, "max_width": 64},
        {
            "preset": "diffusion-pipe",
            "resolutions": [64],
            "enable_ar_bucket": True,
            "ar_buckets": [[65536, 1]],
            "frame_buckets": [5],
        },
        {
            "preset": "diffusion-pipe",
            "resolutions": [64],
            "enable_ar_bucket": True,
            "ar_buckets": [[1, 65536]],
            "frame_buckets": [5],
        },
    ],
)  # fmt: skip
def test_presets_make_none_of_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"less than or equal to|is no aspect ratio of"):
        validate(ClipsConfig, settings, "clips")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"buckets": {"sizes": [[16, 16]], "aspect_ratios": [1, 2], "ratio_of": "aspect_ratio"}},
         "there are 2 aspect_ratios for 1 sizes"),
        ({"buckets": {"sizes": [[16, 16]], "aspect_ratios": [1]}}, "go with `ratio_of: aspect_ratio`"),
        ({"buckets": {"sizes": [[16, 16]], "ratio_of": "aspect_ratio"}}, "go with `ratio_of"),
        ({"buckets": {"sizes": [[16, 16]], "area": 256}}, "remove area and multiple"),
        ({"buckets": {"sizes": [[16, 16]], "square": 16}}, "is for each source's own ratio"),
        ({"size": [16, 16], "resize": {"square": 16}}, "`square` is for `fit: twice`"),
        ({"size": [16, 16], "needs_frames": [36, 50]}, "`needs_frames` are .36, 50. and `frames` .33.;"),
        ({"size": [16, 16], "needs_frames": [32]}, "give a number for each, no smaller"),
        ({"size": [16, 16], "needs_frames": [36], "too_short": "shorten"}, "remove `too_short: shorten`"),
    ],
)  # fmt: skip
def test_settings_of_presets_are_sound_by_themselves_too(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(ClipsConfig, {"frames": 33, **settings}, "clips")


def test_sizes_may_have_the_ratios_that_sources_are_compared_with() -> None:
    buckets = {"sizes": [[16, 32], [32, 32]], "aspect_ratios": [1, 3], "ratio_of": "aspect_ratio"}
    clips = validate(ClipsConfig, {"frames": 1, "buckets": buckets}, "clips")
    assert clips.size_of(100, 100) == (16, 32)
    assert clips.size_of(100, 300) == (32, 32)


def test_recipes_without_the_settings_of_presets_are_those_of_before() -> None:
    settings = {"frames": 1, "buckets": {"sizes": [[16, 16]]}, "resize": {"fit": "stretch"}}
    clips = validate(ClipsConfig, settings, "clips").model_dump(mode="json")
    assert "needs_frames" not in clips
    assert "square" not in clips["buckets"]
    assert list(clips["resize"]) == [
        "filter", "enlarge", "library", "antialias", "align_corners", "fit", "rounding"
    ]  # fmt: skip
