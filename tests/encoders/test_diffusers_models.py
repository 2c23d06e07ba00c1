from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentcache.core import posterior
from latentcache.encoders.diffusers.image_classes import IMAGE_CLASSES
from latentcache.encoders.diffusers.video_classes import VIDEO_CLASSES
from latentcache.errors import ConfigError, EncoderError
from tests.tools.diffusers_tools import (
    FRAMES,
    IMAGE,
    VIDEO,
    as_fed_by_diffusers,
    built,
    described,
    expected,
    expected_pixels,
    identity,
    pixels,
    reference,
    section,
    size_of,
    video_processor,
)
from tests.tools.tiny_models import TINY, save, save_cogvideox, save_wan

pytestmark = pytest.mark.slow
#: Tiny models that still take seconds per clip: what is decoded, and bfloat16, is for long runs.
LARGE = {"allegro", "cogvideox", "kvae", "magvit", "vidtok", "vidtok_fsq", "vidtok_noncausal"}


def large_ones_long(names: Iterable[str]) -> list[Any]:
    """Names of models as parameters, of which those of large ones are for long runs."""
    return [pytest.param(n, marks=pytest.mark.long) if n in LARGE else n for n in names]


@pytest.fixture(params=[*VIDEO, *IMAGE])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=large_ones_long([*VIDEO, *IMAGE]))
def light_name(request: pytest.FixtureRequest) -> str:
    """All of them; the large ones in long runs only."""
    return str(request.param)


@pytest.fixture(params=["wan", "cogvideox", "ltx", "vidtok_fsq", "flux2", "vq"])
def some_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_class_has_a_tiny_model() -> None:
    classes = {class_name for class_name, _ in TINY.values()}
    assert classes == {*VIDEO_CLASSES, *IMAGE_CLASSES}


def test_every_class_is_in_the_installed_diffusers() -> None:
    import diffusers

    assert [name for name in (*VIDEO_CLASSES, *IMAGE_CLASSES) if not hasattr(diffusers, name)] == []


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.long)])
def test_encoded_is_the_models_bit_for_bit(name: str, tmp_path: Path, batch: int) -> None:
    model = save(name, tmp_path)
    encoder, vae = built(model, name), reference(model)
    for frames in FRAMES.get(name, (1, 2)):
        clip = pixels(frames, batch=batch, size=size_of(name))
        encoded = encoder.encode(clip)
        if encoder.spec.ids is None:
            assert encoded.std() > 1e-2
        assert torch.equal(encoded, expected(name, vae, as_fed_by_diffusers(clip)))


def test_what_the_video_processor_feeds_is_what_is_fed(some_name: str, tmp_path: Path) -> None:
    encoder = built(save(some_name, tmp_path), some_name)
    clip = pixels(3, batch=2)
    assert torch.equal(encoder._to_model_range(clip), as_fed_by_diffusers(clip))


def test_encoded_is_the_models_in_bfloat16_too(light_name: str, tmp_path: Path) -> None:
    name = light_name
    model = save(name, tmp_path)
    encoder, vae = built(model, name, dtype="bfloat16"), reference(model, torch.bfloat16)
    clip = pixels(FRAMES.get(name, (1, 2))[1 if name != "allegro" else 0], size=size_of(name))
    if name == "cosmos":
        with pytest.raises(
            EncoderError, match=r"cannot compute in bfloat16 on cpu.*dtype: float32"
        ):
            encoder.encode(clip)
        return
    encoded = encoder.encode(clip)
    assert encoded.dtype == (torch.bfloat16 if encoder.spec.ids is None else encoded.dtype)
    assert torch.equal(encoded, expected(name, vae, as_fed_by_diffusers(clip).bfloat16()))


def test_decoded_pixels_are_the_pipelines(light_name: str, tmp_path: Path) -> None:
    """The pipelines' last steps on what the model's decode gives, past [-1, 1] somewhere."""
    name = light_name
    encoder = built(save(name, tmp_path), name)
    frames = FRAMES.get(name, (1, 2))[0]
    encoded = encoder.encode(pixels(frames, batch=2, size=size_of(name)))
    is_moments = encoder.spec.ids is None and encoded.shape[1] == 2 * encoder.spec.channels
    latents = posterior.split(encoded)[0] if is_moments else encoded
    model_class = encoder._class
    with torch.no_grad():
        sample = model_class.decode(encoder._vae, latents.clone()) * 4
    frozen = {**model_class.__dict__, "decode": lambda vae, z: sample}
    encoder._class = type(model_class)(**frozen)
    shown = video_processor().postprocess_video(sample, output_type="np")
    assert np.array_equal(encoder.decode(latents).numpy(), (shown * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    "name", large_ones_long([*(n for n in VIDEO if n != "ltx095"), "kl", "dc", "tiny"])
)
def test_decoded_pixels_are_the_models(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path)
    encoder = built(model, name)
    encoded = encoder.encode(pixels(FRAMES.get(name, (1, 2))[-1], size=size_of(name)))
    is_moments = encoder.spec.ids is None and encoded.shape[1] == 2 * encoder.spec.channels
    latents = posterior.split(encoded)[0] if is_moments else encoded
    sample = expected_pixels(name, reference(model), latents.clone().contiguous())
    shown = ((sample * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    difference = encoder.decode(latents).int() - shown.permute(0, 2, 3, 4, 1).int()
    assert difference.abs().max() <= 1


def test_every_pixel_level_is_fed_as_diffusers_does(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    fed = video_processor().preprocess([Image.fromarray(levels)])[0]
    encoder = built(save_wan(tmp_path))
    assert torch.equal(encoder._to_model_range(torch.from_numpy(levels)[None, None])[0, :, 0], fed)


def test_decoding_twice_gives_the_same_bits(some_name: str, tmp_path: Path) -> None:
    encoder = built(save(some_name, tmp_path), some_name)
    encoded = encoder.encode(pixels(FRAMES.get(some_name, (1, 2))[1], size=size_of(some_name)))
    is_ids = encoder.spec.ids is not None
    latents = encoded if is_ids else posterior.split(encoded)[0]
    assert torch.equal(encoder.decode(latents), encoder.decode(latents))


@pytest.mark.parametrize(
    ("name", "stride", "channels", "exactness"),
    [
        ("wan", (4, 8, 8), 16, "prefix_exact"),
        ("wan22", (4, 16, 16), 48, "prefix_exact"),
        ("qwenimage", (4, 8, 8), 16, "prefix_exact"),
        ("cogvideox", (4, 8, 8), 16, "exact"),
        ("hunyuan", (4, 8, 8), 16, "exact"),
        ("hunyuan15", (4, 16, 16), 4, "prefix_exact"),
        ("ltx", (8, 32, 32), 8, "prefix_exact"),
        ("ltx095", (8, 32, 32), 8, "prefix_exact"),
        ("ltx2", (8, 32, 32), 8, "prefix_exact"),
        ("mochi", (6, 8, 8), 12, "prefix_exact"),
        ("allegro", (4, 8, 8), 4, "exact"),
        ("magvit", (4, 8, 8), 16, "prefix_exact"),
        ("cosmos", (8, 8, 8), 16, "prefix_exact"),
        ("kvae", (4, 8, 8), 16, "exact"),
        ("svd", (1, 8, 8), 4, "prefix_exact"),
        ("vidtok", (4, 8, 8), 4, "prefix_exact"),
        ("vidtok_fsq", (4, 8, 8), 1, "prefix_exact"),
        ("vidtok_noncausal", (4, 8, 8), 4, "exact"),
        ("kl", (1, 8, 8), 4, "prefix_exact"),
        ("flux", (1, 8, 8), 16, "prefix_exact"),
        ("flux2", (1, 16, 16), 128, "prefix_exact"),
        ("dc", (1, 32, 32), 8, "prefix_exact"),
        ("tiny", (1, 8, 8), 4, "prefix_exact"),
        ("vq", (1, 8, 8), 1, "prefix_exact"),
    ],
)
def test_spec_comes_from_the_models_config(
    name: str, stride: tuple[int, ...], channels: int, exactness: str, tmp_path: Path
) -> None:
    spec = described(save(name, tmp_path), name)
    assert (spec.stride, spec.channels, spec.exactness) == (stride, channels, exactness)
    assert spec.compute_dtype == "float32"
    assert spec.packages == {"diffusers": importlib.metadata.version("diffusers")}


@pytest.mark.parametrize(
    ("name", "stores"),
    [
        ("cosmos", "mean"),
        ("kvae", "mean"),
        ("dc", "mean"),
        ("tiny", "mean"),
        ("vidtok_fsq", "ids"),
        ("vq", "ids or mean"),
        ("wan", "moments or mean or sample"),
    ],
)
def test_what_a_model_does_not_have_cannot_be_stored(
    name: str, stores: str, tmp_path: Path
) -> None:
    model = save(name, tmp_path)
    for store in {"moments", "mean", "sample", "ids"} - set(stores.split(" or ")):
        with pytest.raises(
            ConfigError, match=f"no {store} to store. Set encoder.store to {stores}"
        ):
            described(model, name, store=store)


def test_key_missing_in_config_json_is_the_classes_default(tmp_path: Path) -> None:
    model = save_cogvideox(tmp_path)
    data = json.loads((model / "config.json").read_text())
    del data["scaling_factor"]
    (model / "config.json").write_text(json.dumps(data))
    assert described(model).normaliser.scale == (1.15258426,)


@pytest.mark.parametrize("name", ["hunyuan15", "flux2"])
def test_class_that_the_installed_diffusers_lacks_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(name, tmp_path)
    original = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda package: "0.35.2" if package == "diffusers" else original(package),
    )
    with pytest.raises(ConfigError) as caught:
        described(model, name)
    assert f"the installed diffusers 0.35.2 has no {TINY[name][0]}" in str(caught.value)
    assert "pip install 'diffusers>=0.36'" in str(caught.value)


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


def test_identity_says_how_a_clip_is_cut(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path)
    recipe, vae = identity(model, name), built(model, name)._vae
    for attribute, value in recipe["attributes"].items():
        assert getattr(vae, attribute) == value
    steering = {key for key in vars(vae) if key.startswith(("use_", "num_sample_frames"))}
    unused = {"num_sample_frames_batch_size"} & steering if name in _UNUSED_BATCHES else set()
    assert steering - unused - set(recipe["attributes"]) - {"use_framewise_encoding"} <= {
        "use_framewise_decoding"
    }


#: Their classes have the attribute and never read it when encoding.
_UNUSED_BATCHES = ("ltx", "ltx095", "ltx2", "mochi", "cosmos")


def test_attribute_that_this_diffusers_lacks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKLHunyuanVideo

    original = AutoencoderKLHunyuanVideo.__init__

    @functools.wraps(original)
    def renamed(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        del self.use_framewise_encoding

    model = save("hunyuan", tmp_path)
    monkeypatch.setattr(AutoencoderKLHunyuanVideo, "__init__", renamed)
    with pytest.raises(
        EncoderError, match=r"has no attribute use_framewise_encoding, so its chunk"
    ):
        built(model)


def test_model_that_breaks_its_spec_is_caught(tmp_path: Path) -> None:
    encoder = built(save_wan(tmp_path))
    encoder._vae.use_tiling = True  # a tile stride that leaves half of the latent out
    encoder._vae.tile_sample_min_height = encoder._vae.tile_sample_min_width = 16
    encoder._vae.tile_sample_stride_height = encoder._vae.tile_sample_stride_width = 32
    with pytest.raises(EncoderError, match=r"returned .*, but its spec says \[1, 32, 1, 4, 6\]"):
        encoder.encode(pixels(1))


def test_identity_follows_weights_dtype_and_store_but_not_the_folder(
    some_name: str, tmp_path: Path
) -> None:
    name, model = some_name, save(some_name, tmp_path / "model")
    before = identity(model, name)
    shutil.copytree(model, tmp_path / "other" / "vae")
    assert identity(tmp_path / "other", name, subfolder="vae") == before
    assert identity(model, name, dtype="bfloat16") != before
    if name != "vidtok_fsq":
        assert identity(model, name, store="mean") != before
    save(name, model, seed=1)
    after = identity(model, name)
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


def test_unsupported_class_names_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderOobleck"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"is of class AutoencoderOobleck.*AutoencoderKLWan, Auto"
    ):
        described(tmp_path)


def test_image_class_asked_for_as_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"class AutoencoderKL\. The kind diffusers_video does not know that class",
    ):
        described(save("kl", tmp_path))


def test_section_of_a_tiny_model_is_of_its_kind() -> None:
    assert section("x", "kl")["kind"] == "diffusers_image"
