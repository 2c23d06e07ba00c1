"""Runs with real model classes: bit-for-bit equality with the model's own code, and what resume refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.format.checksum import seal_json
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.tiny_models import save_wan
from tests.tools.videos import read_with_pyav

pytestmark = pytest.mark.usefixtures("kept_pools")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a small random-weight Wan VAE, and a cache of float32 moments made with it."""
    folder = tmp_path_factory.mktemp("model")
    make_corpus(folder / "corpus", 2, frames=9)
    save_wan(folder / "wan")
    encoder = {"kind": "diffusers_video", "model": str(folder / "wan"), "dtype": "float32"}
    config = make_config(
        folder,
        folder / "corpus",
        str(folder / "cache"),
        clips={"frames": 9},
        encoder={**encoder, "store": "moments"},
        cache={"dtype": "float32"},
    )
    run_job("precompute", config, status=3)
    return folder


def test_cached_moments_equal_the_models_own_bit_for_bit(folder: Path) -> None:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(folder / "wan").eval()
    cache = latentcache.open_cache(str(folder / "cache"), expect={"channels": 16})
    assert len(cache) == 3
    for name in ("v0.mp4", "v1.mp4"):
        pixels = torch.from_numpy(read_with_pyav(folder / "corpus" / name))
        x = 2 * (pixels.permute(3, 0, 1, 2)[None].float() / 255) - 1
        with torch.inference_mode():
            own = vae.encode(x.contiguous()).latent_dist
        moments = cache.stored(f"{name}#0")
        assert torch.equal(moments, torch.cat([own.mean, own.logvar], dim=1)[0])


def test_a_trainers_expectation_that_fails_names_both(folder: Path) -> None:
    with pytest.raises(latentcache.CacheError, match=r"(?s)channels.*3.*16"):
        latentcache.open_cache(str(folder / "cache"), expect={"channels": 3})


def test_resume_refuses_other_weights(folder: Path, tmp_path: Path) -> None:
    save_wan(tmp_path / "other", seed=1)
    _, err = run_job("resume", folder / "cache", f"encoder.model={tmp_path}/other", status=2)
    assert "weights_sha256" in err
    assert "in the cache" in err


def test_resume_takes_the_same_weights_from_another_folder(folder: Path, tmp_path: Path) -> None:
    save_wan(tmp_path / "moved")
    out, _ = run_job("resume", folder / "cache", f"encoder.model={tmp_path}/moved", status=3)
    assert "0 to encode" in out


def test_resume_refuses_another_version_of_the_encoders_package(
    folder: Path, tmp_path: Path
) -> None:
    manifest = folder / "cache" / "cache.json"
    original = manifest.read_text()
    data = json.loads(original)
    data["recipe"]["encoder"]["packages"]["diffusers"] = "0.1.0"
    try:
        manifest.write_bytes(seal_json(data))
        _, err = run_job("resume", folder / "cache", status=2)
    finally:
        manifest.write_text(original)
    assert "encoder.packages.diffusers: 0.1.0 in the cache" in err
    assert "cannot be resumed" in err


def test_a_missing_model_is_one_message_before_anything_is_loaded(folder: Path) -> None:
    _, err = run_job("resume", folder / "cache", "encoder.model=/nowhere/wan", status=2)
    assert "/nowhere/wan" in err
    assert len(err.strip().splitlines()) <= 3
