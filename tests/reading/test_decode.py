"""A cache's latents back as pixels, with the model that made them and no other."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import latentcache
from latentcache import encoders
from latentcache.encoders import stored
from latentcache.errors import ConfigError, EncoderError, RecipeMismatchError
from tests.encoders.test_tiny import TAEF2
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.discrete_models import save_vqgan
from tests.tools.tiny_models import save_wan
from tests.tools.videos import read_with_pyav, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("decoding") / "corpus", 2, frames=5)


def make_cache(folder: Path, corpus: Path, encoder: dict[str, Any], **sections: Any) -> Path:
    """Make a cache with an encoder, of which nothing else is configured than this."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(folder, corpus, str(folder / "cache"), **sections)
    data = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**data, "encoder": encoder}))
    run_job("precompute", config, status=3)
    return folder / "cache"


@pytest.fixture(scope="module")
def dct_cache(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiling = {"tile": [32, 48], "overlap": [8, 16]}
    encoder = {"kind": "dct", "store": "moments", "tiling": tiling}
    return make_cache(tmp_path_factory.mktemp("dct"), corpus, encoder)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan_model") / "wan")


@pytest.fixture(scope="module")
def wan_cache(wan: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = {
        "kind": "diffusers_video",
        "model": str(wan),
        "dtype": "float32",
        "store": "moments",
        "tiling": {"tile": [32, 48], "overlap": [8, 16]},
    }
    return make_cache(tmp_path_factory.mktemp("wan"), corpus, encoder, cache={"dtype": "float32"})


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    mse = (a.double() - b.double()).square().mean()
    return float(10 * torch.log10(255**2 / mse))


def test_tiled_moments_decode_to_the_pixels(dct_cache: Path, corpus: Path) -> None:
    cache = latentcache.open_cache(str(dct_cache))
    decoded = cache.decode("v1.mp4#0")
    pixels = torch.from_numpy(read_with_pyav(corpus / "v1.mp4").copy())
    assert (decoded.dtype, decoded.device.type) == (torch.uint8, "cpu")
    assert decoded.shape == pixels.shape
    other = torch.from_numpy(read_with_pyav(corpus / "v0.mp4").copy())
    assert psnr(decoded, pixels) > 30 > psnr(decoded, other)
    assert cache.decode("picture.png#0").shape == (1, 64, 96, 3)


def test_a_model_decodes_the_means_as_it_does_itself(wan_cache: Path, wan: Path) -> None:
    from diffusers import AutoencoderKLWan
    from diffusers.video_processor import VideoProcessor

    cache = latentcache.open_cache(str(wan_cache))
    mean = cache.stored("v0.mp4#0")[:16]
    vae = AutoencoderKLWan.from_pretrained(wan).eval()
    with torch.inference_mode():
        values = vae.decode(mean[None]).sample
    expected = VideoProcessor().postprocess_video(values, output_type="np")[0]
    decoded = cache.decode("v0.mp4#0", device="cpu")
    assert torch.equal(decoded, torch.from_numpy((expected * 255).round()).to(torch.uint8))


def test_ids_decode_too(corpus: Path, tmp_path: Path) -> None:
    encoder = save_vqgan(tmp_path)
    made = make_cache(tmp_path / "vqgan", corpus, encoder, clips={"frames": 2, "select": "first"})
    cache = latentcache.open_cache(str(made))
    ids = cache.stored("v0.mp4#0")
    assert ids.dtype == torch.uint8
    module, config = encoders.resolve(encoder)
    own = module.build(config, spec=cache.spec, device=torch.device("cpu"))
    assert torch.equal(cache.decode("v0.mp4#0", device="cpu"), own.decode(ids.long()[None])[0])


def test_a_key_that_is_not_there_is_a_key_error(dct_cache: Path) -> None:
    with pytest.raises(KeyError, match="no ok clip has the key 'nothing'"):
        latentcache.open_cache(str(dct_cache)).decode("nothing")


@pytest.mark.long
def test_the_model_may_lie_elsewhere_and_compute_otherwise(
    wan_cache: Path, wan: Path, tmp_path: Path
) -> None:
    shutil.copytree(wan, tmp_path / "moved")
    cache = latentcache.open_cache(str(wan_cache))
    expected = cache.decode("v0.mp4#0")
    moved = {"model": str(tmp_path / "moved")}
    assert torch.equal(cache.decode("v0.mp4#0", encoder=moved), expected)
    rough = cache.decode("v0.mp4#0", encoder={"dtype": "bfloat16"})
    assert not torch.equal(rough, expected)
    assert psnr(rough, expected) > 30
    with pytest.raises(ConfigError, match="/nowhere/wan"):
        cache.decode("v0.mp4#0", encoder={"model": "/nowhere/wan"})
    assert torch.equal(cache.decode("v0.mp4#0"), expected)


def test_another_model_is_refused_with_the_difference(wan_cache: Path, tmp_path: Path) -> None:
    save_wan(tmp_path / "other", seed=1)
    cache = latentcache.open_cache(str(wan_cache))
    with pytest.raises(RecipeMismatchError) as caught:
        cache.decode("v0.mp4#0", encoder={"model": str(tmp_path / "other")})
    assert "the pixels would be wrong" in str(caught.value)
    assert "encoder.weights_sha256: " in str(caught.value)
    assert "tiling" not in str(caught.value)
    with pytest.raises(RecipeMismatchError, match=r"encoder.store: moments in the cache, mean now"):
        cache.decode("v0.mp4#0", encoder={"store": "mean"})


def test_the_model_is_loaded_once(
    dct_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = []
    original = stored._build
    monkeypatch.setattr(stored, "_build", lambda *a: built.append(a[1]) or original(*a))
    cache = latentcache.open_cache(str(dct_cache))
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(cache.decode, ["v0.mp4#0", "v1.mp4#0"] * 4))
    assert len(built) == 1
    assert all(torch.equal(decoded[i], decoded[i % 2]) for i in range(8))
    cache.decode("v0.mp4#0", device="cpu")
    assert len(built) == (1 if not torch.cuda.is_available() else 2)
    cache.decode("v0.mp4#0", encoder={"store": "moments"})
    cache.decode("v0.mp4#0", encoder={"store": "moments"})
    assert built[-1] == {"store": "moments"}
    assert len(built) <= 3
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.decode("v1.mp4#0"), decoded[1])


@pytest.mark.skipif(not TAEF2["encoder"].is_file(), reason="no real taef2 weights")
def test_an_encoder_without_a_decoder_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    frame = read_with_pyav(make_corpus(tmp_path / "made", 1, frames=3) / "v0.mp4")
    write_video(tmp_path / "corpus" / "v0.mp4", frame)
    config = make_config(
        tmp_path,
        tmp_path / "corpus",
        str(tmp_path / "cache"),
        clips={"frames": 2, "select": "first"},
        encoder={"kind": "taesd", "encoder": str(TAEF2["encoder"]), "dtype": "float32"},
    )
    run_job("precompute", config)
    cache = latentcache.open_cache(str(tmp_path / "cache"))
    with pytest.raises(EncoderError, match=r"Set encoder\.decoder to the file"):
        cache.decode("v0.mp4#0")
    if TAEF2["decoder"].is_file():
        decoded = cache.decode("v0.mp4#0", encoder={"decoder": str(TAEF2["decoder"])})
        assert psnr(decoded, torch.from_numpy(frame[:2].copy())) > 25


def test_a_plug_in_without_decode_says_so(dct_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentcache.encoders.dct import DCTEncoder

    monkeypatch.delattr(DCTEncoder, "decode")
    with pytest.raises(EncoderError, match="DCT has no `decode`"):
        latentcache.open_cache(str(dct_cache)).decode("v0.mp4#0")


def test_encoders_are_imported_by_the_first_decode_and_not_before(dct_cache: Path) -> None:
    code = (
        "import sys, latentcache, latentcache.reading.loader.loader\n"
        f"cache = latentcache.open_cache({str(dct_cache)!r})\n"
        "cache.sample('v0.mp4#0')\n"
        "late = ('latentcache.encoders', 'latentcache.encoders.stored')\n"
        "assert not [m for m in (*late, 'ray', 'decord', 'av', 'diffusers') if m in sys.modules]\n"
        "cache.decode('v0.mp4#0')\n"
        "assert all(m in sys.modules for m in late)\n"
        "assert not [m for m in ('ray', 'decord', 'av', 'diffusers') if m in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
