from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentcache.core import posterior
from latentcache.errors import ConfigError
from tests.tools.diffusers_tools import (
    built,
    described,
    flux2_patchify,
    identity,
    pixels,
    reference,
)
from tests.tools.tiny_models import save

pytestmark = pytest.mark.slow


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_scaled_and_shifted_as_the_pipelines_do(tmp_path: Path) -> None:
    """SD, then FLUX: (latents - shift_factor) * scaling_factor."""
    z = noise(1, 4, 2, 3, 3)
    spec = described(save("kl", tmp_path / "sd"), "kl")
    assert torch.equal(posterior.normalise(z, spec.normaliser), z * 0.18215)
    spec = described(save("flux", tmp_path / "flux"), "flux")
    assert spec.normaliser.kind == "shift_scale"
    assert torch.equal(posterior.normalise(z, spec.normaliser), (z - 0.1159) * 0.3611)


@pytest.mark.parametrize("nested", [False, True])
def test_model_with_statistics_is_normalised_with_them_and_scaled(
    nested: bool, tmp_path: Path
) -> None:
    """Playground 2.5: (latents - mean) * scaling_factor / std, as StableDiffusionXLPipeline undoes."""
    mean, std = [0.1, 0.2, -0.3, 0.4], [2.0, 0.5, 4.0, 1.0]
    given = [[[[m]] for m in mean]] if nested else mean
    model = save("kl", tmp_path, latents_mean=given, latents_std=std, scaling_factor=0.5)
    z = noise(1, 4, 2, 3, 3)
    expected = (
        (z - torch.tensor(mean).view(1, 4, 1, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1, 1)
    )
    assert torch.equal(posterior.normalise(z, described(model, "kl").normaliser), expected)


def test_flux2_normalises_patches_as_its_pipeline_does(tmp_path: Path) -> None:
    """The arithmetic of `Flux2Pipeline._encode_vae_image`, but for the rounding of its division."""
    model = save("flux2", tmp_path)
    encoder, vae = built(model, "flux2"), reference(model)
    clip = pixels(1, size=(48, 64))
    x = encoder._to_model_range(clip)[:, :, 0].contiguous()
    with torch.no_grad():
        latents = flux2_patchify(vae.encode(x).latent_dist.mode())
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    stored, _ = posterior.split(encoder.encode(clip))
    assert torch.equal(stored[:, :, 0], latents)
    normalised = posterior.normalise(stored, encoder.spec.normaliser)[:, :, 0]
    torch.testing.assert_close(normalised, (latents - mean) / std, rtol=1e-6, atol=1e-6)
    assert (normalised - latents).abs().max() > 0.1


def test_flux2_is_decoded_from_patches(tmp_path: Path) -> None:
    model = save("flux2", tmp_path)
    encoder, vae = built(model, "flux2"), reference(model)
    clip = pixels(1, size=(48, 64))
    with torch.no_grad():
        mean = vae.encode(encoder._to_model_range(clip)[:, :, 0].contiguous()).latent_dist.mean
        sample = vae.decode(mean).sample
    decoded = encoder.decode(posterior.split(encoder.encode(clip))[0])
    expected = ((sample * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(decoded[:, 0], expected.permute(0, 2, 3, 1))


def test_flux2_with_other_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has patches of \[1, 1\]"):
        described(save("flux2", tmp_path, patch_size=(1, 1)), "flux2")


@pytest.mark.parametrize("name", ["kl", "flux2", "dc", "tiny", "vq", "movq"])
def test_a_frame_is_the_same_bits_in_any_clip(name: str, tmp_path: Path) -> None:
    encoder = built(save(name, tmp_path), name)
    clip = pixels(3, size=(64, 96))
    whole = encoder.encode(clip)
    for t in range(3):
        alone = encoder.encode(clip[:, t : t + 1])
        assert torch.equal(whole.narrow(whole.ndim - 3, t, 1), alone)


def test_frames_of_a_batch_are_encoded_at_once_as_the_model_itself_does(tmp_path: Path) -> None:
    model = save("kl", tmp_path)
    encoder, vae = built(model, "kl"), reference(model)
    clips = pixels(2, batch=3, size=(64, 96))
    means, _ = posterior.split(encoder.encode(clips))
    for t in range(2):
        images = encoder._to_model_range(clips)[:, :, t].contiguous()
        with torch.no_grad():
            expected = vae.encode(images).latent_dist.mean
        assert torch.equal(means[:, :, t], expected)


def test_tiny_autoencoders_latents_are_normalised_already(tmp_path: Path) -> None:
    assert described(save("tiny", tmp_path), "tiny").normaliser.kind == "none"


def test_pixel_range_of_a_quantiser_must_be_said(tmp_path: Path) -> None:
    model = save("vq", tmp_path)
    with pytest.raises(ConfigError, match=r"encoder.pixel_range: required for VQModel.*aMUSEd"):
        described(model, "vq", pixel_range=None)
    amused = described(model, "vq", pixel_range=[0, 1])
    assert amused.pixel_range == (0.0, 1.0)
    assert identity(model, "vq", pixel_range=[0, 1]) != identity(model, "vq")


def test_pixel_range_of_other_classes_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AutoencoderKL takes \[-1.0, 1.0\]. Remove"):
        described(save("kl", tmp_path), "kl", pixel_range=[0, 1])


def test_quantiser_is_fed_the_range_that_was_said(tmp_path: Path) -> None:
    model, clip = save("vq", tmp_path), pixels(1)
    low = built(model, "vq", pixel_range=[0, 1])._to_model_range(clip)
    assert torch.equal(low[0].permute(1, 2, 3, 0), clip[0].float() / 255)


@pytest.mark.parametrize("name", ["vq", "movq"])
def test_ids_decode_as_the_latents_that_they_are_of(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path)
    encoder, vae = built(model, name), reference(model)
    clip = pixels(1)
    with torch.no_grad():
        latents = vae.encode(encoder._to_model_range(clip)[:, :, 0].contiguous()).latents
        sample = vae.decode(latents).sample
    expected = ((sample * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    decoded = encoder.decode(encoder.encode(clip))[:, 0].permute(0, 3, 1, 2)
    assert (decoded.int() - expected.int()).abs().max() <= 1


def test_quantiser_can_store_what_it_would_quantise(tmp_path: Path) -> None:
    """Kandinsky 2's trainers take MoVQ's latents times scaling_factor, and decode without quantising."""
    model = save("movq", tmp_path)
    encoder, vae = built(model, "movq", store="mean"), reference(model)
    clip = pixels(2)
    x = encoder._to_model_range(clip)
    encoded = encoder.encode(clip)
    with torch.no_grad():
        for t in range(2):
            latents = vae.encode(x[:, :, t].contiguous()).latents
            assert torch.equal(encoded[:, :, t], latents)
        sample = vae.decode(latents, force_not_quantize=True).sample
    expected = ((sample * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(encoder.decode(encoded)[:, 1], expected.permute(0, 2, 3, 1))
    assert encoder.spec.normaliser.scale == (0.18215,)
    assert encoder.spec.ids is None
