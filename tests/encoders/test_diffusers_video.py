from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image

from latentcache import posterior
from latentcache.encoders import resolve
from latentcache.encoders.diffusers_video import DiffusersVideoEncoder
from latentcache.errors import ConfigError, EncoderError
from tests.tiny_models import save_cogvideox, save_wan, save_wan22

CPU = torch.device("cpu")
SAVERS: dict[str, Callable[..., Path]] = {
    "wan": save_wan,
    "wan22": save_wan22,
    "cogvideox": save_cogvideox,
}
LEGAL = {"wan": (1, 5, 17), "wan22": (1, 5), "cogvideox": (1, 8, 9, 16, 17)}


def section(model: Path | str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "diffusers_video",
        "model": str(model),
        "dtype": "float32",
        "store": "moments",
        **changes,
    }


def built(model: Path | str, **changes: Any) -> DiffusersVideoEncoder:
    module, config = resolve(section(model, **changes))
    spec = module.describe(config, dtype="float32")
    encoder = module.build(config, spec=spec, device=CPU)
    assert isinstance(encoder, DiffusersVideoEncoder)
    return encoder


def described(model: Path | str, **changes: Any) -> Any:
    module, config = resolve(section(model, **changes))
    return module.describe(config, dtype="float32")


def identity(model: Path | str, **changes: Any) -> dict[str, Any]:
    module, config = resolve(section(model, **changes))
    return dict(module.identity(config))


def reference(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model as a user of diffusers loads it, with diffusers' own defaults."""
    import diffusers

    name = json.loads((model / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(str(model), torch_dtype=dtype)


def video_processor() -> Any:
    from diffusers.video_processor import VideoProcessor

    return VideoProcessor(vae_scale_factor=8)


def pixels(frames: int, batch: int = 1, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (batch, frames, *size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(params=list(SAVERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path) -> Path:
    return SAVERS[kind](tmp_path / "model")


@pytest.mark.parametrize("batch", [1, 2])
def test_moments_are_the_models_bit_for_bit(kind: str, model: Path, batch: int) -> None:
    """The model is fed by diffusers' own processor; 48x64 is past where its tiling would begin."""
    encoder, vae = built(model), reference(model)
    for frames in LEGAL[kind]:
        clip = pixels(frames, batch=batch, size=(48, 64))
        x = video_processor().preprocess_video(list((clip.float() / 255).numpy()))
        if batch > 1:  # [B, T, C, H, W] in memory: other kernels, which round otherwise
            x = x.contiguous()
        with torch.no_grad():
            dist = vae.encode(x).latent_dist
        mean, logvar = posterior.split(encoder.encode(clip))
        assert torch.equal(mean, dist.mean)
        assert torch.equal(logvar, dist.logvar)


def test_moments_are_the_models_in_bfloat16_too(model: Path) -> None:
    encoder, vae = built(model, dtype="bfloat16"), reference(model, torch.bfloat16)
    clip = pixels(9)
    x = video_processor().preprocess_video(list((clip.float() / 255).numpy()))
    with torch.no_grad():
        dist = vae.encode(x.to(torch.bfloat16)).latent_dist
    moments = encoder.encode(clip)
    assert moments.dtype == torch.bfloat16
    assert torch.equal(moments, torch.cat([dist.mean, dist.logvar], dim=1))


def test_every_pixel_level_is_fed_as_diffusers_does(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    expected = video_processor().preprocess([Image.fromarray(levels)])[0]
    encoder = built(save_wan(tmp_path))
    fed = encoder._to_model_range(torch.from_numpy(levels)[None, None])
    assert torch.equal(fed[0, :, 0], expected)


def test_decoded_pixels_are_the_pipelines(kind: str, model: Path) -> None:
    encoder, vae = built(model), reference(model)
    mean, _ = posterior.split(encoder.encode(pixels(LEGAL[kind][1], batch=2)))
    with torch.no_grad():
        sample = vae.decode(mean.clone()).sample * 4  # past [-1, 1] somewhere: clamped
        encoder._vae.decode = lambda z: type(vae.decode(z))(sample=sample)
    expected = video_processor().postprocess_video(sample, output_type="np")
    assert np.array_equal(encoder.decode(mean).numpy(), (expected * 255).round().astype(np.uint8))


def test_wan_normalises_as_the_wan_pipeline_does(tmp_path: Path) -> None:
    model = save_wan22(tmp_path)
    vae = reference(model)
    mean = torch.tensor(vae.config.latents_mean).view(1, 48, 1, 1, 1)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(1, 48, 1, 1, 1)
    z = torch.randn(2, 48, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    normaliser = described(model).normaliser
    assert normaliser.kind == "channel"
    assert torch.equal(posterior.normalise(z, normaliser), (z - mean) * std)
    assert torch.equal(posterior.unnormalise(z, normaliser), z / std + mean)


@pytest.mark.parametrize("invert", [False, True])
def test_cogvideox_multiplies_video_latents_by_its_factor(tmp_path: Path, invert: bool) -> None:
    """invert_scale_latents is about the condition image of image-to-video alone."""
    model = save_cogvideox(tmp_path, scaling_factor=0.7, invert_scale_latents=invert)
    z = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(posterior.normalise(z, described(model).normaliser), z * 0.7)


@pytest.mark.parametrize(
    ("kind", "stride", "channels", "exactness"),
    [
        ("wan", (4, 8, 8), 16, "prefix_exact"),
        ("wan22", (4, 16, 16), 48, "prefix_exact"),
        ("cogvideox", (4, 8, 8), 16, "exact"),
    ],
)
def test_spec_comes_from_the_models_config(
    model: Path, stride: tuple[int, ...], channels: int, exactness: str
) -> None:
    spec = described(model)
    assert (spec.stride, spec.channels, spec.exactness) == (stride, channels, exactness)
    assert spec.stored_channels == 2 * channels
    assert spec.compute_dtype == "float32"


def test_key_missing_in_config_json_is_the_classes_default(tmp_path: Path) -> None:
    model = save_cogvideox(tmp_path)
    data = json.loads((model / "config.json").read_text())
    del data["scaling_factor"]
    (model / "config.json").write_text(json.dumps(data))
    assert described(model).normaliser.scale == (1.15258426,)


def test_cogvideox_prefix_is_exact_between_8k_plus_1_alone(tmp_path: Path) -> None:
    encoder = built(save_cogvideox(tmp_path))
    clip = pixels(17)
    whole = encoder.encode(clip)
    assert torch.equal(whole[:, :, :3], encoder.encode(clip[:, :9]))
    assert (whole[:, :, :2] - encoder.encode(clip[:, :8])).abs().max() > 1e-3


def test_error_inside_wan_clears_its_feature_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = built(save_wan(tmp_path))

    def fail(_: torch.Tensor) -> None:
        assert any(entry is not None for entry in encoder._vae._enc_feat_map)
        raise MemoryError("no room")

    monkeypatch.setattr(encoder._vae.quant_conv, "forward", fail)
    with pytest.raises(MemoryError, match="no room"):
        encoder.encode(pixels(5))
    assert all(entry is None for entry in encoder._vae._enc_feat_map)


def test_chunking_and_tiling_are_set_whatever_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKLCogVideoX

    original = AutoencoderKLCogVideoX.__init__

    @functools.wraps(original)
    def tiled(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.use_tiling = self.use_slicing = True
        self.num_sample_frames_batch_size = 16

    model = save_cogvideox(tmp_path)
    monkeypatch.setattr(AutoencoderKLCogVideoX, "__init__", tiled)
    vae = built(model)._vae
    assert (vae.use_tiling, vae.use_slicing, vae.num_sample_frames_batch_size) == (False, False, 8)
    assert identity(model)["attributes"]["use_tiling"] is False
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_model_that_breaks_its_spec_is_caught(tmp_path: Path) -> None:
    encoder = built(save_wan(tmp_path))
    encoder._vae.use_tiling = True  # a tile stride that leaves half of the latent out
    encoder._vae.tile_sample_min_height = encoder._vae.tile_sample_min_width = 16
    encoder._vae.tile_sample_stride_height = encoder._vae.tile_sample_stride_width = 32
    with pytest.raises(EncoderError, match=r"returned .* where its spec says \[1, 32, 1, 4, 6\]"):
        encoder.encode(pixels(1))


def test_identity_follows_weights_dtype_and_store_but_not_the_folder(
    kind: str, model: Path, tmp_path: Path
) -> None:
    before = identity(model)
    shutil.copytree(model, tmp_path / "other" / "vae")
    assert identity(tmp_path / "other", subfolder="vae") == before
    assert identity(model, dtype="bfloat16") != before
    assert identity(model, store="mean") != before
    SAVERS[kind](model, seed=1)
    after = identity(model)
    assert {key for key in after if after[key] != before[key]} == {"weights_sha256"}


def test_identity_follows_the_models_config_but_not_where_it_came_from(tmp_path: Path) -> None:
    model = save_cogvideox(tmp_path)
    before = identity(model)
    path = model / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "_name_or_path": "x", "_diffusers_version": "0"}, indent=4))
    assert identity(model) == before
    path.write_text(json.dumps({**data, "norm_eps": 0.1}))
    assert identity(model)["model_config_sha256"] != before["model_config_sha256"]


def test_weights_in_several_files_are_loaded_and_hashed(tmp_path: Path) -> None:
    model = save_wan(tmp_path / "whole")
    reference(model).save_pretrained(str(tmp_path / "split"), max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    clip = pixels(5)
    assert torch.equal(built(tmp_path / "split").encode(clip), built(model).encode(clip))
    next((tmp_path / "split").glob("*-00002-of-*")).unlink()
    with pytest.raises(ConfigError, match="the download is incomplete"):
        described(tmp_path / "split")


def test_weights_that_differ_from_the_specs_are_refused(tmp_path: Path) -> None:
    module, config = resolve(section(save_wan(tmp_path)))
    spec = module.describe(config, dtype="float32")
    save_wan(tmp_path, seed=1)
    with pytest.raises(EncoderError, match="latents of two models would be mixed"):
        module.build(config, spec=spec, device=CPU)


def test_weights_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_wan(tmp_path)
    path = str(model / "diffusion_pytorch_model.safetensors")
    tensors = load_file(path)
    del tensors["quant_conv.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lack 1 tensors .* quant_conv.bias.*stay random"):
        built(model)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = save_wan(tmp_path)
    (model / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match=r"cannot be loaded.*download it again"):
        built(model)


def test_unsupported_class_names_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLMochi"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"is of class AutoencoderKLMochi.*AutoencoderKLWan, Autoenc"
    ):
        described(tmp_path)


def test_wan_that_does_not_reduce_time_by_4_is_refused(tmp_path: Path) -> None:
    model = save_wan(tmp_path, temperal_downsample=[False, False, True])
    with pytest.raises(ConfigError, match="reduces time by 2, but the class encodes"):
        described(model)


def test_normaliser_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    model = save_wan(tmp_path, z_dim=4)
    with pytest.raises(ConfigError, match=r"has 4 channels .* but 16 latents_mean"):
        described(model)


def test_pipeline_folder_without_subfolder_says_which(tmp_path: Path) -> None:
    save_wan(tmp_path / "vae")
    with pytest.raises(ConfigError, match=r"holds no config.json.*set encoder.subfolder: vae"):
        described(tmp_path)
    with pytest.raises(ConfigError, match=r"Correct encoder.subfolder, which is 'vea'"):
        described(tmp_path, subfolder="vea")
    assert described(tmp_path, subfolder="vae").channels == 16


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (save_wan(tmp_path) / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no diffusion_pytorch_model.safetensors"):
        described(tmp_path)


def test_path_that_is_not_there_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        described(tmp_path / "nothing")


def test_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"remove encoder.revision"):
        described(save_wan(tmp_path), revision="main")


def test_hub_id_is_fetched_and_read_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repo: str, name: str, *, subfolder: str | None, revision: str | None) -> str:
        asked.append((repo, name, subfolder, revision))
        path = tmp_path / (subfolder or "") / name
        if not path.exists():
            raise EntryNotFoundError(f"404: {name}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    local = save_wan(tmp_path / "vae")
    spec = described("someone/some-wan", subfolder="vae", revision="abc")
    assert spec.weights_sha256 == described(local).weights_sha256
    assert asked == [
        ("someone/some-wan", "config.json", "vae", "abc"),
        ("someone/some-wan", "diffusion_pytorch_model.safetensors", "vae", "abc"),
    ]
    with pytest.raises(ConfigError, match=r"someone/some-wan holds no config.json.*subfolder: vae"):
        described("someone/some-wan")


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline mode is on")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(ConfigError, match=r"offline mode is on.*set encoder.model to the folder"):
        described("someone/some-wan")
