"""`latentcache init --from musubi`: images get the sizes that musubi-tuner's caching gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.config.trainers import Converted, convert

STEP = 16
#: (width, height) of images: squares, both orientations, far ones, smaller and larger than the areas.
SHOWN = [(1080, 1920), (1024, 1024), (1920, 1080), (640, 360), (300, 200), (4000, 500), (481, 273)]


def bucket_selector(
    resolution: tuple[int, int], enable_bucket: bool, size: tuple[int, int]
) -> tuple[int, int]:
    """Restate `BucketSelector` of kohya-ss/musubi-tuner 30c658c, src/musubi_tuner/dataset/bucket.py.

    `ImageDataset.retrieve_latent_cache_batches` gives it `enable_bucket`; `VideoDataset`'s does not.
    """
    buckets: Sequence[tuple[int, int]] = [resolution]
    if enable_bucket:
        area = resolution[0] * resolution[1]
        edge = math.isqrt(area)
        start = edge // 2 - edge // 2 % STEP
        pairs = [(w, area // w - area // w % STEP) for w in range(start, edge + STEP, STEP)]
        buckets = sorted({*pairs, *((h, w) for w, h in pairs)})
    return min(buckets, key=lambda bucket: abs(bucket[0] / bucket[1] - size[0] / size[1]))


def from_musubi(tmp_path: Path, **given: object) -> Converted:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"datasets": [given]}))
    (found,) = convert("musubi", str(path))
    return found


def size_of(found: Converted, size: tuple[int, int]) -> tuple[int, int]:
    raw = {"corpus": found.corpus, "clips": found.clips, "encoder": {"kind": "dct"}}
    clips = validate(Config, {**raw, "cache": {"url": "x"}}, "here").clips
    assert clips.frames == 1
    height, width = clips.size_of(size[1], size[0])
    return width, height


@pytest.mark.parametrize("place", ["image_directory", "image_jsonl_file"])
@pytest.mark.parametrize("enable_bucket", [None, False, True])
@pytest.mark.parametrize("resolution", [None, [480, 272], [272, 480], 512, [1280, 720]])
def test_images_have_one_size_unless_buckets_are_enabled(
    tmp_path: Path, place: str, enable_bucket: bool | None, resolution: object
) -> None:
    given = {"resolution": resolution, "enable_bucket": enable_bucket, place: "/data/images"}
    found = from_musubi(tmp_path, **given)
    one = (resolution, resolution) if isinstance(resolution, int) else (resolution or (960, 544))
    width, height = one  # type: ignore[misc]
    for size in SHOWN:
        expected = bucket_selector((width, height), bool(enable_bucket), size)
        assert size_of(found, size) == expected, size
    assert not [line for line in found.lost if "bucket" in line or "resolution" in line]


@pytest.mark.parametrize("enable_bucket", [True, False])
def test_videos_have_buckets_whatever_enable_bucket_says(
    tmp_path: Path, enable_bucket: bool
) -> None:
    given = {"resolution": [480, 272], "enable_bucket": enable_bucket, "bucket_no_upscale": True}
    found = from_musubi(tmp_path, video_directory="/data/videos", **given)
    for size in SHOWN:
        assert size_of(found, size) == bucket_selector((480, 272), True, size)
    assert not [line for line in found.lost if "bucket" in line]


@pytest.mark.parametrize("enable_bucket", [True, False])
def test_images_that_musubi_would_not_enlarge_are_said_to_be_enlarged_here(
    tmp_path: Path, enable_bucket: bool
) -> None:
    """Without `enable_bucket`, `BaseDataset.__init__` of musubi-tuner turns `bucket_no_upscale` off."""
    given = {"image_directory": "/data/images", "enable_bucket": enable_bucket}
    found = from_musubi(tmp_path, **given, bucket_no_upscale=True)
    said = [line for line in found.lost if line.startswith("bucket_no_upscale: ")]
    assert bool(said) == enable_bucket
    if said:
        assert "here they are enlarged, so their latents differ" in said[0]
        assert "clips.too_small: record" in said[0]


def test_keys_of_videos_in_a_data_set_of_images_are_named(tmp_path: Path) -> None:
    found = from_musubi(tmp_path, image_directory="/i", target_frames=[25], source_fps=30.0)
    for key in ("target_frames", "source_fps"):
        assert f"{key}: the data set is of images" in found.lost
    assert size_of(found, (960, 544)) == (960, 544)


def test_what_is_null_counts_as_not_given(tmp_path: Path) -> None:
    """As in `BlueprintGenerator.search_value` of musubi-tuner, whose file may be JSON."""
    path = tmp_path / "set.json"
    dataset = {"image_directory": "/i", "video_directory": None, "resolution": None}
    path.write_text(json.dumps({"general": {"resolution": 512}, "datasets": [dataset]}))
    (found,) = convert("musubi", str(path))
    assert size_of(found, (100, 300)) == (512, 512)
