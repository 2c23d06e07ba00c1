"""Runs over tiles: what is recorded of them, what they are compared with, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache import encoders
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.planned import planned_from
from tests.tools.tiny_models import save_wan
from tests.tools.videos import SHARED, SHARED_VIDEOS, read_with_pyav

pytestmark = pytest.mark.usefixtures("kept_pools")

TILES = {"tile": [32, 48], "overlap": [8, 16]}
DCT = {"kind": "dct", "tiling": TILES}
WEIGHTS = SHARED / "weights" / "taef2_encoder.pth"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("tiled") / "corpus", 2)


def errors(cache: Path) -> dict[str, dict[tuple[int, int], float | None]]:
    """tiling_error by bucket, shard and row."""
    found: dict[str, dict[tuple[int, int], float | None]] = {}
    for row in latentcache.open_cache(str(cache)).table().to_pylist():
        if row["bucket"] is not None:
            place = (row["shard"], row["row"])
            found.setdefault(row["bucket"], {})[place] = row["tiling_error"]
    return found


@pytest.mark.long
def test_a_few_clips_of_each_bucket_are_encoded_untiled_too(corpus: Path, tmp_path: Path) -> None:
    tiled = tmp_path / "tiled"
    out, _ = run_job("precompute", make_config(tmp_path, corpus, str(tiled), encoder=DCT), status=3)
    # The encoder is blockwise: tiles change nothing but the last bits of sums.
    assert re.search(r"tiling +error [\d.e-]+ on average, [\d.e-]+ at most, of 4 clips", out)
    found = errors(tiled)
    assert sorted(found["5x64x96"]) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert found["5x64x96"].pop((1, 0)) is None
    assert list(found["1x64x96"]) == [(0, 0)]
    for bucket in found.values():
        assert all(error is not None and 0 <= error < 1e-6 for error in bucket.values())
    plain = tmp_path / "plain"
    out, _ = run_job("precompute", make_config(tmp_path, corpus, str(plain)), status=3)
    assert "tiling" not in out
    assert set(errors(plain)["5x64x96"].values()) == {None}


@pytest.fixture(scope="module")
def wan(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache made by a small Wan over tiles, and the section of its encoder."""
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder / "wan")
    encoder = {
        "kind": "diffusers_video",
        "model": str(folder / "wan"),
        "dtype": "float32",
        "store": "moments",
        "tiling": TILES,
    }
    config = make_config(
        folder, corpus, str(folder / "cache"), encoder=encoder, cache={"dtype": "float32"}
    )
    run_job("precompute", config, status=3)
    return folder / "cache", encoder


def test_the_error_of_a_network_is_that_of_the_stored_means(
    corpus: Path, wan: tuple[Path, dict[str, Any]]
) -> None:
    """Of random weights it is large: their attention sees a tile where it would see the picture."""
    cache = latentcache.open_cache(str(wan[0]))
    module, config = encoders.resolve({**wan[1], "tiling": None})
    encoder = module.build(config, spec=cache.spec, device=torch.device("cpu"))
    assert cache.spec.exactness == "approximate"
    for row in range(3):
        key = cache.rows("5x64x96", 0).column("key", [row])[0]
        source, _, clip = key.partition("#")
        start = 5 * int(clip)
        pixels = torch.from_numpy(read_with_pyav(corpus / source)[start : start + 5])
        untiled = encoder.encode(pixels[None])[0, :16].double()
        stored = cache.stored(key)[:16].double()
        spread = untiled - untiled.mean((1, 2, 3), keepdim=True)
        error = float((stored - untiled).norm() / spread.norm())
        assert errors(wan[0])["5x64x96"][(0, row)] == pytest.approx(error, rel=1e-3)
        assert 0.1 < error < 2


@pytest.mark.long
def test_other_tiles_are_another_recipe(
    corpus: Path, wan: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    cache, encoder = wan
    config = make_config(tmp_path, corpus, str(cache), encoder=encoder, cache={"dtype": "float32"})
    _, err = run_job("precompute", config, "encoder.tiling.tile=[32, 64]", status=2)
    assert "encoder.tiling.tile[1]: 48 in the cache, 64 now" in err
    _, err = run_job("precompute", config, "encoder.tiling=null", status=2)
    assert "encoder.tiling: " in err
    assert "absent now" in err
    out, _ = run_job("resume", cache, "encoder.tiling.measure=0", status=3)
    assert "0 to encode" in out


def test_wrong_tiles_are_refused_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    tiles = {"kind": "dct", "tiling": {"tile": [30, 48], "overlap": [8, 16]}}
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), encoder=tiles)
    _, err = run_job("precompute", config, status=2)
    assert "encoder.tiling.tile: DCT reduces height by 8" in err
    assert not (tmp_path / "cache").exists()


@pytest.mark.long
def test_clips_that_are_tried_again_leave_the_others_their_errors(tmp_path: Path) -> None:
    """They become rows of new shards, which are measured by their places, as all are."""
    corpus = make_corpus(tmp_path / "corpus", 3)
    config = make_config(tmp_path, corpus, str(tmp_path / "whole"), encoder=DCT)
    run_job("precompute", config, status=3)
    cache = tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(cache), encoder=DCT)
    planned_from(config)
    away = (corpus / "v1.mp4").rename(tmp_path / "away.mp4")
    run_job("resume", cache, "--skip-changed", status=3)
    away.rename(corpus / "v1.mp4")
    before = errors(cache)["5x64x96"]
    assert before[(0, 2)] is None
    run_job("resume", cache, "--retry-failed", status=3)
    after, whole = errors(cache)["5x64x96"], errors(tmp_path / "whole")["5x64x96"]
    kept = before.keys() - {(0, 2), (1, 0)}
    assert {place: after[place] for place in kept} == {place: whole[place] for place in kept}
    assert after.keys() == kept | {(2, 0), (2, 1)}
    found, expected = (latentcache.open_cache(str(url)) for url in (cache, tmp_path / "whole"))
    assert len(found) == len(expected)
    for sample in expected:
        assert torch.equal(found.sample(sample["key"])["latents"], sample["latents"])


def test_a_shard_that_does_not_fit_fails_with_the_tile_that_would_and_the_others_go_on(
    corpus: Path, tmp_path: Path
) -> None:
    """The image fits whole; the clips of 5 frames do not, until they are tiled."""
    encoder: dict[str, Any] = {"kind": "tests.tools.encoders.full_gpu", "store": "mean"}
    cache = tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(cache), encoder=encoder, run={"max_retries": 0})
    out, _ = run_job("precompute", config, status=3)
    assert "DCT has no GPU memory for 5 frames of 64x96 pixels" in out
    assert "encoder.tiling.tile: [32, 48] fits" in out
    assert "clips    1 ok, 4 failed" in out
    tiled = tmp_path / "tiled"
    encoder["tiling"] = TILES
    config = make_config(tmp_path, corpus, str(tiled), encoder=encoder, run={"max_retries": 0})
    out, _ = run_job("precompute", config, status=3)
    assert "clips    5 ok, 0 failed" in out
    # Untiled, only the image fits, to be compared with.
    assert set(errors(tiled)["5x64x96"].values()) == {None}
    assert errors(tiled)["1x64x96"][(0, 0)] is not None


@pytest.mark.long
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no weights at {WEIGHTS}")
def test_the_error_of_real_weights_on_a_real_video(tmp_path: Path) -> None:
    """Measured: 0.19 to 0.20. The model has a group norm over the whole picture: see docs/tiling.md."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "hiker.mp4").symlink_to(SHARED_VIDEOS / "hiker.mp4")
    tiling = {"tile": [256, 256], "overlap": [64, 64]}
    encoder = {"kind": "taesd", "encoder": str(WEIGHTS), "dtype": "float32", "tiling": tiling}
    clips = {"frames": 1, "size": [480, 720], "select": "uniform:3"}
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), clips=clips, encoder=encoder)
    out, _ = run_job("precompute", config)
    assert "of 3 clips encoded untiled" in out
    (found,) = errors(tmp_path / "cache").values()
    assert all(error is not None and 0.1 < error < 0.3 for error in found.values())
