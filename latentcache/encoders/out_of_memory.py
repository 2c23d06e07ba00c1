"""What happens if a GPU has too little memory for an encoder: nothing changes silently.

The pipeline calls `encode`. A clip or tile that does not fit fails its shard, and the message names
a size that fits.
"""

from __future__ import annotations

import contextlib

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders.protocol import Encoder
from latentcache.errors import EncoderError


def encode(encoder: Encoder, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
    """Encode a batch. If it does not fit, raises EncoderError with the size of a tile that does."""
    encoded = try_encode(encoder, pixels_BTHWC)
    if encoded is None:
        raise EncoderError(_no_room(encoder, pixels_BTHWC))
    return encoded


def try_encode(encoder: Encoder, pixels_BTHWC: torch.Tensor) -> torch.Tensor | None:
    """Encode a batch; None if the GPU has no memory for it, after freeing all that can be freed."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return encoder.encode(pixels_BTHWC)
    torch.cuda.empty_cache()  # after the except block: the exception kept its arguments alive
    return None


def size_that_fits(encoder: Encoder, pixels_BTHWC: torch.Tensor) -> tuple[int, int] | None:
    """Halve height and width until the upper left corner of one clip fits; None if none does."""
    _, sh, sw = encoder.spec.stride
    height, width = pixels_BTHWC.shape[2:4]
    while (height, width) != (sh, sw):
        height, width = _half(height, sh), _half(width, sw)
        if try_encode(encoder, pixels_BTHWC[:1, :, :height, :width].contiguous()) is not None:
            return height, width
    return None


def why_untileable(spec: LatentSpec) -> str | None:
    """Return why an encoder's latents cannot be stitched from tiles; None if they can."""
    name = spec.model_class
    if spec.ids is not None:
        return f"{name} gives ids, and there is no code between two codes to blend to"
    if spec.fixed_size is not None:
        height, width = spec.fixed_size
        return f"{name} takes only {height}x{width} pixels"
    if spec.size_rules is not None:
        return f"{name} has tiles of its own, which its trainers see"
    return None


def _half(size: int, stride: int) -> int:
    return max(stride, size // 2 // stride * stride)


def batch_that_fits(encoder: Encoder, pixels_BTHWC: torch.Tensor) -> int | None:
    """Halve the number of clips until they fit; None if not even one does."""
    number = len(pixels_BTHWC) // 2
    while number and try_encode(encoder, pixels_BTHWC[:number]) is None:
        number //= 2
    return number or None


def _no_room(encoder: Encoder, pixels_BTHWC: torch.Tensor) -> str:
    frames, height, width = pixels_BTHWC.shape[1:4]
    clips = batch_that_fits(encoder, pixels_BTHWC)
    if clips is not None:
        return (
            f"{encoder.spec.model_class} has no GPU memory for {len(pixels_BTHWC)} clips of {frames} "
            f"frames of {height}x{width} pixels at once; encoder.batch: {clips} fits. The batch changes "
            "last bits, so it is part of the recipe: make another cache with it, or resume this one on a "
            "larger GPU."
        )
    head = f"{encoder.spec.model_class} has no GPU memory for {frames} frames of {height}x{width} pixels"
    why_not = why_untileable(encoder.spec)
    if why_not is not None:
        return (
            f"{head}, and cannot be tiled: {why_not}. Make clips smaller or shorter, or use a larger "
            "GPU."
        )
    fits = size_that_fits(encoder, pixels_BTHWC)
    if fits is None:
        return (
            f"{head}, nor for any part of them. Make clips shorter, use a larger GPU, or stop the other "
            "programs on this one."
        )
    return (
        f"{head}; encoder.tiling.tile: [{fits[0]}, {fits[1]}] fits. Tiles change the latents, so they are "
        "part of the recipe: make another cache with them, or resume this one on a larger GPU."
    )
