from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.core import posterior
from latentcache.encoders.diffusers import kvae
from latentcache.errors import ConfigError, EncoderError, GeometryError
from tests.tools.diffusers_tools import built, described, pixels, reference
from tests.tools.tiny_models import save, save_cogvideox, save_wan, save_wan22

pytestmark = pytest.mark.slow


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


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
    """invert_scale_latents is only about the condition image of image-to-video."""
    model = save_cogvideox(tmp_path, scaling_factor=0.7, invert_scale_latents=invert)
    z = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(posterior.normalise(z, described(model).normaliser), z * 0.7)


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


def test_wan_that_does_not_reduce_time_by_4_is_refused(tmp_path: Path) -> None:
    model = save_wan(tmp_path, temperal_downsample=[False, False, True])
    with pytest.raises(ConfigError, match="reduces time by 2, but the class encodes"):
        described(model)


def test_normaliser_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    model = save_wan(tmp_path, z_dim=4)
    with pytest.raises(ConfigError, match=r"has 4 channels but 16 latents_mean"):
        described(model)


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_ltx_normalises_with_the_buffers_of_its_weights(name: str, tmp_path: Path) -> None:
    """As `_normalize_latents` of its pipelines, whose two steps round once more."""
    model = save(name, tmp_path)
    vae, z = reference(model), noise(2, 8, 3, 2, 2)
    mean, std = (t.view(1, -1, 1, 1, 1) for t in (vae.latents_mean, vae.latents_std))
    normaliser = described(model).normaliser
    assert normaliser.kind == "channel"
    assert len(set(normaliser.shift)) == 8
    expected = (z - mean) * vae.config.scaling_factor / std
    torch.testing.assert_close(posterior.normalise(z, normaliser), expected, rtol=1e-6, atol=1e-7)


def test_mochi_normalises_by_channel_as_its_pipeline_undoes(tmp_path: Path) -> None:
    model = save("mochi", tmp_path, scaling_factor=2.0)
    config, z = reference(model).config, noise(2, 12, 3, 2, 2)
    mean, std = (
        torch.tensor(v).view(1, 12, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
    )
    undone = posterior.unnormalise(z, described(model).normaliser)
    torch.testing.assert_close(undone, z * std / config.scaling_factor + mean)


@pytest.mark.parametrize("frames", [1, 2, 16])
def test_cosmos_normalises_by_channel_and_latent_frame(frames: int, tmp_path: Path) -> None:
    """As `prepare_latents` of CosmosVideoToWorldPipeline, with its scheduler's sigma_data."""
    from diffusers import EDMEulerScheduler

    sigma_data = EDMEulerScheduler().config.sigma_data
    model = save("cosmos", tmp_path)
    config, z = reference(model).config, noise(2, 16, frames, 2, 2)
    mean, std = (
        torch.tensor(values).view(1, config.latent_channels, -1, 1, 1)[:, :, : z.size(2)]
        for values in (config.latents_mean, config.latents_std)
    )
    normaliser = described(model, "cosmos").normaliser
    assert normaliser.kind == "channel_frame"
    expected = (z - mean) * sigma_data / std
    torch.testing.assert_close(posterior.normalise(z, normaliser), expected, rtol=1e-6, atol=1e-7)


def test_cosmos_without_statistics_is_scaled_alone_and_takes_any_length(tmp_path: Path) -> None:
    spec = described(save("cosmos", tmp_path, latents_mean=None, latents_std=None), "cosmos")
    assert (spec.normaliser.kind, spec.normaliser.scale) == ("scale", (0.5,))
    assert spec.frame_rule.is_legal(129)


@pytest.mark.parametrize(
    ("name", "factor"), [("hunyuan", 0.476986), ("hunyuan15", 1.03682), ("allegro", 0.13)]
)
def test_scaled_classes_multiply_by_their_factor(name: str, factor: float, tmp_path: Path) -> None:
    spec = described(save(name, tmp_path))
    assert (spec.normaliser.kind, spec.normaliser.scale) == ("scale", (factor,))


@pytest.mark.parametrize("name", ["vidtok", "kvae"])
def test_classes_without_a_factor_are_not_normalised(name: str, tmp_path: Path) -> None:
    assert described(save(name, tmp_path), name).normaliser.kind == "none"


def test_ltx_that_is_not_causal_declares_no_exact_prefixes(tmp_path: Path) -> None:
    model = save("ltx", tmp_path, encoder_causal=False)
    assert described(model).exactness == "exact"
    encoder, clip = built(model), pixels(17, size=(64, 96))
    prefix = encoder.encode(clip[:, :9])
    assert (encoder.encode(clip)[:, :, :2] - prefix).abs().max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("name", ["hunyuan", "cogvideox", "kvae"])
def test_convolutions_are_causal_to_the_frame_where_group_norm_alone_is_not(
    name: str, tmp_path: Path
) -> None:
    """So `pixel_frames` is true to the frame, but for the statistics of GroupNorm."""
    encoder = built(save(name, tmp_path), name)
    for module in encoder._vae.encoder.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    clip = pixels(17)
    before = encoder.encode(clip)
    for t in range(before.shape[2]):
        start, stop = encoder.spec.pixel_frames(t, 17)
        for frame in {start, stop - 1}:
            changed = clip.clone()
            changed[:, frame] = 255 - changed[:, frame]
            difference = (encoder.encode(changed) - before).abs().amax(dim=(0, 1, 3, 4))
            assert int(difference.nonzero()[0]) == t


def test_allegro_takes_what_its_tiles_cover_alone(tmp_path: Path) -> None:
    spec = described(save("allegro", tmp_path))
    assert spec.frame_rule.describe() == "16k+8, at least 24"
    spec.check_size(128 + 8 * 3, 128 + 48 * 2)
    with pytest.raises(
        GeometryError, match=r"height of 8k, at least 128 pixels, not 120.*Use a height of 128"
    ):
        spec.check_size(120, 128)
    with pytest.raises(
        GeometryError, match=r"not 160: it would silently leave out the rest.*of 128 or 176\."
    ):
        spec.check_size(128, 160)


def test_published_allegro_takes_its_published_size(tmp_path: Path) -> None:
    spec = described(save("allegro", tmp_path, sample_size=320))
    spec.check_frames(88)
    spec.check_size(720, 1280)
    with pytest.raises(GeometryError, match="Use a height of 320 or 520"):
        spec.check_size(480, 1280)


def test_allegro_with_tiles_smaller_than_their_overlaps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiles of 64 pixels"):
        described(save("allegro", tmp_path, sample_size=64))


def test_cosmos_longer_than_its_statistics_is_refused(tmp_path: Path) -> None:
    spec = described(save("cosmos", tmp_path), "cosmos")
    with pytest.raises(
        GeometryError, match=r"8k\+1, at most 121 frames per clip, not 129.*to 121\."
    ):
        spec.check_frames(129)


@pytest.mark.parametrize("name", ["wan", "qwenimage", "magvit"])
def test_class_that_encodes_groups_of_4_with_another_stride_is_refused(
    name: str, tmp_path: Path
) -> None:
    other: dict[str, Any] = {"temperal_downsample": [False, False, True]}
    if name == "magvit":
        other = {
            "down_block_types": ["SpatialDownBlock3D"] * 2 + ["SpatialTemporalDownBlock3D"] * 2
        }
    with pytest.raises(ConfigError, match="reduces time by 2, but the class encodes"):
        described(save(name, tmp_path, **other))


@pytest.mark.long
def test_kvae_refuses_inputs_that_it_would_split_at_the_wrong_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = built(save("kvae", tmp_path), "kvae")
    clip = pixels(17)
    before = encoder.encode(clip)
    monkeypatch.setattr(kvae, "SPLIT_BYTES", 10_000)
    with pytest.raises(GeometryError, match=r"at the wrong frame.*Use a smaller clips.size"):
        encoder.encode(clip)
    monkeypatch.undo()
    assert torch.equal(encoder.encode(clip), before)


def test_vidtok_is_fed_as_its_own_forward_feeds_it(tmp_path: Path) -> None:
    vae = reference(save("vidtok", tmp_path / "kl"))
    clip = pixels(5)
    x = built(tmp_path / "kl")._to_model_range(clip)
    with torch.no_grad():
        mode = vae(x, sample_posterior=False, encoder_mode=True)
    assert torch.equal(posterior.split(built(tmp_path / "kl").encode(clip))[0], mode)
    vae = reference(save("vidtok_fsq", tmp_path / "fsq"))
    with torch.no_grad():
        _, ids = vae(x, encoder_mode=True)
    assert torch.equal(built(tmp_path / "fsq", "vidtok_fsq").encode(clip), ids)


def test_vidtok_ids_are_fsq_codes_of_8_levels_lowest_channel_first(tmp_path: Path) -> None:
    model = save("vidtok_fsq", tmp_path)
    encoder, vae = built(model, "vidtok_fsq"), reference(model)
    assert encoder.spec.ids is not None
    assert encoder.spec.ids.codebook_size == 8**4
    assert encoder.spec.dtype == "uint16"
    clip = pixels(5)
    x = encoder._to_model_range(clip)
    with torch.no_grad():
        codes, _ = vae(x, encoder_mode=True)
    levels = (codes * 4 + 4).round().long()
    ids = sum(levels[:, c] * 8**c for c in range(4))
    assert torch.equal(encoder.encode(clip).long(), ids)


def test_ids_outside_the_codebook_are_refused_by_decode(tmp_path: Path) -> None:
    encoder = built(save("vidtok_fsq", tmp_path), "vidtok_fsq")
    with pytest.raises(EncoderError, match=r"codes 0 to 4095, but these ids go from 0 to 4096"):
        encoder.decode(torch.tensor([0, 4096]).view(1, 2, 1, 1))
    with pytest.raises(
        EncoderError, match=r"decodes whole numbers \[B, t, h, w\], not torch.float32"
    ):
        encoder.decode(torch.zeros(1, 1, 2, 2))


def test_ltx_with_noise_in_its_decoder_decodes_the_same_each_time(tmp_path: Path) -> None:
    encoder = built(save("ltx095", tmp_path))
    mean, _ = posterior.split(encoder.encode(pixels(9, size=(64, 96))))
    first = encoder.decode(mean)
    torch.rand(1)  # whatever came between
    before = torch.get_rng_state()
    assert torch.equal(encoder.decode(mean), first)
    assert torch.equal(torch.get_rng_state(), before)
