"""The whole way on real videos of many kinds, with images among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentcache
from latentcache import encoders
from latentcache.decoders.frames import Frame, fit_frame
from tests.tools.caches import make_config, run_job
from tests.tools.videos import SHARED_VIDEOS, moving_pattern, needs_shared_videos, read_with_pyav

SIZE = (64, 96)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    folder = tmp_path_factory.mktemp("real")
    corpus = folder / "corpus"
    corpus.mkdir()
    for path in SHARED_VIDEOS.iterdir():
        (corpus / path.name).symlink_to(path)
    Image.fromarray(moving_pattern(1, 100, 150)[0]).save(corpus / "one.png")
    Image.fromarray(moving_pattern(1, 90, 60, seed=1)[0]).save(corpus / "two.jpg")
    clips = {"frames": [17, 9], "select": "uniform:2", "too_short": "shorten"}
    config = make_config(folder, corpus, str(folder / "cache"), clips=clips, run={"runner": "ray"})
    run_job("precompute", config, status=3)
    return latentcache.open_cache(str(folder / "cache"))


def reference(path: Path, start: int, frames: int) -> Frame:
    """The frames of a clip as PyAV or Pillow gives them, at the bucket's size."""
    if path.suffix in (".png", ".jpg"):
        pixels = np.array(Image.open(path).convert("RGB"))[None]
    else:
        pixels = read_with_pyav(path, start + frames)[start:]
    out = np.empty((frames, *SIZE, 3), np.uint8)
    for frame, fitted in zip(pixels, out, strict=True):
        fit_frame(frame, fitted, "bicubic")
    return out


@needs_shared_videos
def test_every_file_is_in_the_table_ok_or_with_its_reason(cache: latentcache.Cache) -> None:
    rows = cache.table().to_pylist()
    statuses: dict[str, set[str | None]] = {}
    for row in rows:
        statuses.setdefault(row["source"], set()).add(row["reason"])
    expected = {path.name: {None} for path in SHARED_VIDEOS.iterdir()}
    expected |= {"one.png": {None}, "two.jpg": {None}}
    # Its first frames can be decoded, and the later clip meets the damage.
    expected["corrupted.mp4"] = {None, "corrupt"}
    assert statuses == expected
    assert all(row["message"] for row in rows if row["status"] == "failed")


@needs_shared_videos
def test_every_ok_latent_is_the_encoders_own_on_pyavs_pixels(cache: latentcache.Cache) -> None:
    module, config = encoders.resolve({"kind": "dct", "store": "mean"})
    encoder = module.build(config, spec=cache.spec, device=torch.device("cpu"))
    corpus = Path(cache.storage.url).parent / "corpus"
    rows = [row for row in cache.table().to_pylist() if row["status"] == "ok"]
    assert len(rows) > 30
    for row in rows:
        pixels = reference(corpus / row["source"], row["start"], row["frames"])
        encoded = encoder.encode(torch.from_numpy(pixels)[None])[0, : cache.spec.channels]
        stored = cache.stored(row["key"])
        assert torch.equal(stored, encoded.to(stored.dtype)), row["key"]


@needs_shared_videos
def test_presentation_times_are_recorded(cache: latentcache.Cache) -> None:
    rows = {row["key"]: row for row in cache.table().to_pylist()}
    clip = rows["ivvae_720p.mp4#1"]
    assert clip["start"] == 270 - 17
    assert clip["start_s"] == pytest.approx(253 * 1001 / 30000, abs=1e-4)
    assert clip["end_s"] == pytest.approx(270 * 1001 / 30000, abs=1e-4)
    assert (clip["source_height"], clip["source_width"]) == (720, 1280)
    assert (rows["rotate_90.mov#0"]["source_height"], rows["rotate_90.mov#0"]["source_width"]) == (
        568,
        320,
    )
