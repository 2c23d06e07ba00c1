"""A second size of the same crop: the latents of a cache with that size, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache.config.fields import parse_field
from latentcache.core.records import Bucket
from latentcache.errors import ConfigError
from latentcache.planning.fields.describe import describe_field
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import cache_of
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

FRAMES = 5


@pytest.mark.long
@pytest.mark.slow
def test_latents_of_a_second_size_are_those_of_a_cache_of_that_size(tmp_path: Path) -> None:
    """The crop cuts the source's sides off in both."""
    (tmp_path / "corpus").mkdir()
    write_video(tmp_path / "corpus/v.mp4", moving_pattern(FRAMES, 64, 112, seed=1))
    fields = {"half": {"kind": "visual", "of": "clip", "scale": 0.5}}
    opened = []
    for name, side, of_cache in (("whole", 48, fields), ("small", 24, {})):
        clips = {"frames": FRAMES, "select": "first", "size": [side, side]}
        url = tmp_path / name
        config = make_config(tmp_path, tmp_path / "corpus", str(url), clips=clips, fields=of_cache)
        status, printed = run_inline("precompute", config)
        assert status == 0, printed
        opened.append(latentcache.open_cache(str(url)))
    cache, small = opened
    np.testing.assert_array_equal(
        cache.stored_samples([0])[0]["half"].view(torch.int16), small.stored(0).view(torch.int16)
    )
    batch = next(iter(latentcache.LatentLoader(str(tmp_path / "whole"), fields=["half"])))
    other = next(iter(latentcache.LatentLoader(str(tmp_path / "small"))))
    assert torch.equal(batch["half"], other["latents"])
    assert run_inline("verify", tmp_path / "whole")[0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 1}, "scale: 1 is the clip's own size"),
        ({"scale": 0}, "greater than 0"),
        ({"scale": -0.5}, "greater than 0"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"scale": 0.123456}, "is no simple ratio"),
        ({"scale": 0.2}, "no whole number of pixels"),
        ({"scale": 0.0625}, "cannot be encoded in that size"),
        ({"scale": 0.5, "of": "first_then_zeros", "mask": "wan"}, "of the latents' own size"),
        ({"scale": 0.5, "of": "first", "encoder": {"family": "siglip"}}, "image towers resize"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    cache = cache_of(tmp_path, ["a"], filled=False)
    with pytest.raises(ConfigError, match=message):
        describe_field(
            parse_field("x", {"kind": "visual", "of": "clip", **settings}), cache.manifest
        )


@pytest.mark.parametrize(("scale", "size"), [(0.5, (32, 48)), (1.5, (96, 144)), (0.25, (16, 24))])
def test_a_second_size_is_the_buckets_times_the_scale(
    tmp_path: Path, scale: float, size: tuple[int, int]
) -> None:
    cache = cache_of(tmp_path, ["a"], filled=False)
    field = parse_field("x", {"kind": "visual", "of": "clip", "scale": scale})
    (array,) = describe_field(field, cache.manifest).arrays
    bucket = Bucket.parse(cache.manifest.buckets[0].name)
    assert array.size_in(bucket) == size
    expected = cache.manifest.spec.latent_shape(bucket.frames, *size)
    assert array.shape_in(bucket, cache.manifest.spec) == expected
