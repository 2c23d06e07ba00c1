"""PSNR and SSIM against slow references written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentcache.core import image_quality
from latentcache.core.dtypes import Array
from tests.tools.videos import moving_pattern

SHAPE = (2, 15, 19)


def two_clips(noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = moving_pattern(*SHAPE, seed=seed)
    noisy = pixels + np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)), torch.from_numpy(pixels)


def slow_ssim(a_HW: Array, b_HW: Array) -> float:
    """Wang et al. 2004, window by window: weighted means, variances and covariance in float64."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a_HW.shape[0] - 10):
        for x in range(a_HW.shape[1] - 10):
            a, b = (image[y : y + 11, x : x + 11].astype(np.float64) for image in (a_HW, b_HW))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + c1) * (2 * cov + c2)
            values.append(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [1, 8, 60])
def test_ssim_is_that_of_the_definition(noise: float) -> None:
    a, b = two_clips(noise)
    expected = [
        np.mean([slow_ssim(x[..., c], y[..., c]) for c in range(3)])
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(image_quality.ssim(a, b), expected, rtol=1e-4)


@pytest.mark.slow
def test_ssim_of_flat_frames_is_the_term_of_luminance() -> None:
    a, b = torch.full((1, 16, 16, 3), 250, dtype=torch.uint8), torch.zeros(1, 16, 16, 3).byte()
    c1 = (0.01 * 255) ** 2
    torch.testing.assert_close(
        image_quality.ssim(a, b), torch.tensor([c1 / (250.0**2 + c1)]).double(), rtol=1e-3, atol=0
    )


def test_errors_are_those_of_each_frame_and_psnr_of_all() -> None:
    a, b = two_clips(10)
    a[1] = b[1]
    found = image_quality.compare(a, b)
    difference = a.numpy().astype(np.float64) - b.numpy()
    first = float(np.mean(difference[0] ** 2))
    assert found.mse == pytest.approx((first, 0.0))
    assert found.psnr_db == pytest.approx(10 * math.log10(255**2 / (first / 2)))
    assert found.frame_psnr_db(0) == pytest.approx(10 * math.log10(255**2 / first))
    assert math.isinf(found.frame_psnr_db(1))
    assert found.ssim[1] == pytest.approx(1)
    assert found.mean_ssim == pytest.approx((found.ssim[0] + 1) / 2)
    assert found.ssim[0] < 1


def test_values_far_apart_do_not_wrap() -> None:
    black = torch.zeros(1, 12, 12, 3, dtype=torch.uint8)
    assert image_quality.compare(black, black + 255).psnr_db == 0
    assert image_quality.compare(black + 255, black).psnr_db == 0


def test_fewer_decoded_frames_are_compared_with_the_first() -> None:
    a, b = two_clips(10)
    assert image_quality.compare(a[:1], b) == image_quality.compare(a[:1], b[:1])


def test_frames_smaller_than_the_window_have_no_ssim() -> None:
    small = torch.zeros(2, 10, 64, 3, dtype=torch.uint8)
    found = image_quality.compare(small, small)
    assert (found.ssim, found.mean_ssim, found.mse) == ((), None, (0.0, 0.0))
    with pytest.raises(ValueError, match="frames of 11x11 or more, not"):
        image_quality.ssim(small, small)


def test_clips_of_two_sizes_are_refused() -> None:
    a, b = two_clips(1)
    with pytest.raises(ValueError, match=r"not \(2, 15, 19, 3\) and \(2, 15, 18, 3\)"):
        image_quality.compare(a, b[:, :, 1:])
