"""How close decoded pixels are to their source: PSNR and SSIM of uint8 RGB frames. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its common name

from latentcache.core.units import plural

PEAK = 255.0
#: The window and constants of Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment" (2004).
WINDOW = 11
SIGMA = 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How close a clip is to its source, one number per frame. ssim is empty for frames under WINDOW."""

    mse: tuple[float, ...]
    ssim: tuple[float, ...]

    @property
    def psnr_db(self) -> float:
        """PSNR of the whole clip, from the mean squared error over all its frames."""
        return psnr_db(_mean(self.mse))

    def frame_psnr_db(self, frame: int) -> float:
        """PSNR of each frame."""
        return psnr_db(self.mse[frame])

    @property
    def mean_ssim(self) -> float | None:
        """Mean SSIM of the frames, or None if there is none."""
        return _mean(self.ssim) if self.ssim else None


def compare(decoded_THWC: torch.Tensor, source_THWC: torch.Tensor) -> Quality:
    """Compare uint8 clips [T, H, W, 3] of one size.

    A decoder may give fewer frames than its encoder took: they are compared with the source's first frames.
    """
    source = source_THWC[: len(decoded_THWC)]
    large = min(source.shape[1:3]) >= WINDOW
    return Quality(
        mse=tuple(mse(decoded_THWC, source).tolist()),
        ssim=tuple(ssim(decoded_THWC, source).tolist()) if large else (),
    )


def mse(a_THWC: torch.Tensor, b_THWC: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each frame, float64 [T], of uint8 clips [T, H, W, 3]."""
    _check_same_shape(a_THWC, b_THWC)
    pairs = zip(
        a_THWC, b_THWC, strict=True
    )  # one frame at a time: as float32, a clip takes four times its bytes
    errors = [(a.float() - b.float()).square().mean(dtype=torch.float64) for a, b in pairs]
    return torch.stack(errors)


def psnr_db(mean_squared_error: float) -> float:
    """Return the PSNR in dB of uint8 values with this mean squared error; infinite if it is 0."""
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(PEAK**2 / mean_squared_error)


def psnr_quantiles(psnrs_db: Sequence[float]) -> dict[str, float]:
    """Return the median, the 5 % quantile and the lowest of at least one PSNR, in dB."""
    ordered = sorted(psnrs_db)
    return {
        "median": statistics.median(ordered),
        "5 %": ordered[len(ordered) // 20],
        "lowest": ordered[0],
    }


def psnr_in_words(psnrs_db: Sequence[float]) -> str:
    """Say how high the PSNR is of the clips (at least one) that a run compared."""
    found = psnr_quantiles(psnrs_db)
    return (
        f"PSNR {found['median']:.1f} dB (median), {found['5 %']:.1f} (5 %), {found['lowest']:.1f} "
        f"(lowest) of {plural(len(psnrs_db), 'clip')} that the run decoded, too"
    )


def ssim(a_THWC: torch.Tensor, b_THWC: torch.Tensor) -> torch.Tensor:
    """Return the SSIM of each frame, float64 [T], of uint8 clips [T, H, W, 3].

    The mean over red, green and blue and over every position at which the window lies inside the frame.
    Raises ValueError for frames smaller than the window.
    """
    _check_same_shape(a_THWC, b_THWC)
    if min(a_THWC.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs frames of {WINDOW}x{WINDOW} or more, not {tuple(a_THWC.shape)}"
        )
    return torch.stack([_frame_ssim(a, b) for a, b in zip(a_THWC, b_THWC, strict=True)])


def _frame_ssim(a_HWC: torch.Tensor, b_HWC: torch.Tensor) -> torch.Tensor:
    # Centred on 0: the squares are smaller, so float32 loses less when they cancel in a variance.
    a, b = (frame.permute(2, 0, 1).float() - PEAK / 2 for frame in (a_HWC, b_HWC))
    mean_a, mean_b, square_a, square_b, product = _blur(torch.stack([a, b, a * a, b * b, a * b]))
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + PEAK / 2, mean_b + PEAK / 2
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    similarity: torch.Tensor = luminance * structure
    return similarity.mean(dtype=torch.float64)


def _blur(planes_NCHW: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian-weighted means of every window inside the planes, [N, C, H - 10, W - 10]."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    kernel = (weights / weights.sum()).to(planes_NCHW)
    planes = planes_NCHW.flatten(0, 1)
    # One plane per group: on a CPU ten times as fast as a batch of planes with one channel.
    down, across = (
        kernel.view(1, 1, *shape).expand(len(planes), 1, *shape)
        for shape in ((WINDOW, 1), (1, WINDOW))
    )
    blurred = F.conv2d(F.conv2d(planes, down, groups=len(planes)), across, groups=len(planes))
    return blurred.view(*planes_NCHW.shape[:2], *blurred.shape[-2:])


def _check_same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or not len(a):
        raise ValueError(
            "only two clips [T, H, W, 3] of the same shape can be compared, not "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
