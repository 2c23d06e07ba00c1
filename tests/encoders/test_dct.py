from __future__ import annotations

import pytest
import torch

from latentcache.encoders import dct, resolve
from latentcache.encoders.dct import DCTEncoder, dct_matrix, kept_basis


@pytest.fixture(scope="module")
def encoder() -> DCTEncoder:
    module, config = resolve({"kind": "dct"})
    spec = module.describe(config, dtype="float32")
    built = module.build(config, spec=spec, device=torch.device("cpu"))
    assert isinstance(built, DCTEncoder)
    return built


def coefficients(encoder: DCTEncoder, pixels: torch.Tensor) -> torch.Tensor:
    return encoder.encode(pixels)[:, : dct.CHANNELS]


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(20 * torch.log10(255 / (a.double() - b.double()).square().mean().sqrt()))


@pytest.mark.parametrize("size", [3, 4, 8])
def test_matrix_is_orthonormal(size: int) -> None:
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))


def test_kept_basis_is_orthonormal() -> None:
    basis = kept_basis().flatten(1)
    assert basis.shape == (16, 768)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16, dtype=torch.float64))


def test_coefficients_are_projections_on_the_basis(encoder: DCTEncoder) -> None:
    pixels = noise(1, 5, 16, 24, 3)
    values = 2 * (pixels.double() / 255) - 1
    block = values[0, 1:5, 8:16, 16:24]
    expected = torch.einsum("cijkl,ijkl->c", kept_basis(), block)
    torch.testing.assert_close(
        coefficients(encoder, pixels)[0, :, 1, 1, 2].double(), expected, atol=1e-5, rtol=1e-5
    )


def test_first_frame_is_a_block_of_four_copies(encoder: DCTEncoder) -> None:
    frame = noise(1, 1, 16, 16, 3)
    repeated = coefficients(encoder, frame.expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(repeated[:, :, 0], repeated[:, :, 1], atol=1e-5, rtol=0)


def test_energy_never_grows(encoder: DCTEncoder) -> None:
    pixels = noise(1, 9, 32, 32, 3)
    values = 2 * (pixels.double() / 255) - 1
    energy = coefficients(encoder, pixels)[:, :, 1:].double().square().sum()
    assert energy <= values[:, 1:].square().sum()


def test_constant_colour_is_in_the_mean_coefficients_alone(encoder: DCTEncoder) -> None:
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8).expand(1, 5, 8, 8, 3)
    latents = coefficients(encoder, pixels)[0, :, 1, 0, 0]
    colour = dct_matrix(3) @ torch.tensor([1.0, -1.0, -0.6], dtype=torch.float64) * 16
    mean_channels = [dct.KEPT.index((c, 0, 0, 0)) for c in range(3)]
    expected = torch.zeros(16).index_copy(0, torch.tensor(mean_channels), colour.float())
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0, 1, 127, 200, 255])
def test_constant_video_comes_back_within_one_level(encoder: DCTEncoder, level: int) -> None:
    pixels = torch.full((1, 5, 16, 24, 3), level, dtype=torch.uint8)
    decoded = encoder.decode(coefficients(encoder, pixels))
    assert (decoded.int() - level).abs().max() <= 1


@pytest.mark.slow
def test_smooth_moving_video_comes_back_above_30_db(encoder: DCTEncoder) -> None:
    t, y, x = torch.meshgrid(torch.arange(13), torch.arange(64), torch.arange(96), indexing="ij")
    waves = [torch.sin((x + y * s + t) / 20 + s) for s in (0.5, -0.7, 1.1)]
    pixels = (torch.stack(waves, dim=-1) * 100 + 128).round().to(torch.uint8)[None]
    assert psnr(encoder.decode(coefficients(encoder, pixels)), pixels) > 30


def test_detail_is_lost(encoder: DCTEncoder) -> None:
    pixels = noise(1, 5, 32, 32, 3)
    assert psnr(encoder.decode(coefficients(encoder, pixels)), pixels) < 15


def test_decoding_what_was_decoded_changes_little(encoder: DCTEncoder) -> None:
    pixels = (noise(1, 5, 16, 16, 3) // 4) + 96
    once = encoder.decode(coefficients(encoder, pixels))
    twice = encoder.decode(coefficients(encoder, once))
    assert (once.int() - twice.int()).abs().max() <= 1


def test_motion_within_the_first_frame_is_ignored(encoder: DCTEncoder) -> None:
    latents = torch.zeros(1, 16, 2, 1, 1)
    latents[:, dct.KEPT.index((0, 1, 0, 0))] = 5
    first, *others = encoder.decode(latents)[0].float().mean((1, 2, 3)).tolist()
    assert first == pytest.approx(128, abs=1)
    assert others[0] > 140 > 115 > others[-1]


def test_pieces_do_not_show(encoder: DCTEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(1, 5, 64, 16, 3)
    whole = encoder.encode(pixels)
    monkeypatch.setattr(dct, "_PIECE", 1)
    torch.testing.assert_close(encoder.encode(pixels), whole, atol=1e-5, rtol=0)


def test_posterior_has_no_spread(encoder: DCTEncoder) -> None:
    assert (encoder.encode(noise(1, 1, 8, 8, 3))[:, 16:] == -30).all()
