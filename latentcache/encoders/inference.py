"""How encoders with our own networks run: the same bits each time, and pixels in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")


@contextlib.contextmanager
def exact_kernels(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Run without autograd; on CUDA with deterministic convolutions and true float32, or TF32 if asked."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(_deterministic_cudnn())
            stack.enter_context(_float32_in("tf32" if tf32 else "ieee"))
        yield


@contextlib.contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    """Do what `torch.backends.cudnn.flags` does, which reads allow_tf32 too: see `_set_older`."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before


@contextlib.contextmanager
def _float32_in(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute float32 on CUDA in a precision, by the older and the newer settings of torch.

    Kernels go by the newer ones, so those are set last; torch.compile reads both.
    """
    newer = _newer()
    with _put_back(newer), _set_older(tf32=precision == "tf32"):
        for setting, parent in newer:
            if parent is not torch.backends.mkldnn:
                setting.fp32_precision = precision
        yield


def _newer() -> list[tuple[Any, Any]]:
    """Return the settings `fp32_precision`, each with the one that it inherits from; none before torch 2.9.

    That of MKL-DNN is among them because an older setting writes it.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return []
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    kinds = (backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    return [(cudnn, backends), *((kind, cudnn) for kind in kinds), (mkldnn.matmul, mkldnn)]


@contextlib.contextmanager
def _put_back(settings: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Leave newer settings as they are now. One that has its parent's value is left to inherit it."""
    values = [
        "none" if setting.fp32_precision == parent.fp32_precision else setting.fp32_precision
        for setting, parent in settings
    ]
    try:
        yield
    finally:
        for (setting, _), value in zip(settings, values, strict=True):
            setting.fp32_precision = value


@contextlib.contextmanager
def _set_older(*, tf32: bool) -> Iterator[None]:
    """Set the older settings, and put them back.

    torch raises RuntimeError where one is read that a newer one contradicts. Such a one is left alone.
    """
    matmul = _readable(torch.get_float32_matmul_precision)
    cudnn = _readable(lambda: torch.backends.cudnn.allow_tf32)
    try:
        if matmul is not None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except RuntimeError:
        return None


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
