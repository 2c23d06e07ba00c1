"""How encoders with our own networks run: the same bits each time, and pixels in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_kernels(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Run without autograd; on CUDA with deterministic convolutions and true float32, or TF32 if asked."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
                )
            )
            stack.enter_context(_matmul_tf32(tf32))
        yield


@contextlib.contextmanager
def _matmul_tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def to_values(pixels_BTHWC: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return contiguous [B, T, 3, H, W] on the device of `levels`: the model's input for each level.

    levels: [256], in the model's dtype, made on the CPU. A table is the same on every device, whereas
    CUDA divides by a number by multiplying with its reciprocal.
    """
    pixels_BTCHW = pixels_BTHWC.to(levels.device).permute(0, 1, 4, 2, 3).contiguous()
    return levels[pixels_BTCHW.int()]


def to_pixels(values_BTCHW: torch.Tensor) -> torch.Tensor:
    """Return values in [0, 1], clamped and then rounded, as uint8 pixels [B, T, H, W, 3] on the CPU."""
    levels = values_BTCHW.float().clamp(0, 1).mul_(255).round_()
    return levels.to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous().cpu()
