"""What the discrete tokenizers share: uint8 pixels to ids, and ids to uint8 pixels.

They compute in float32 alone: a code near a tie is another one in a lower precision, and an id that differs is
wrong by more than rounding. Ids leave as int64; the pipeline stores them in the type that the spec names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol

import torch

from latentcache.encoders.checks import check_encoded, check_pixels
from latentcache.errors import EncoderError
from latentcache.records import IdSpec, LatentSpec

#: Frames that an image network takes at once: 16 of 256x256 need about 2 GiB in a VQGAN of 128 channels.
FRAMES_AT_ONCE = 16
#: Codes are compared for this many positions at once: 16,384 codes need 512 MiB of distances.
_ROWS_AT_ONCE = 1 << 13


class Tokenizer(Protocol):
    """A network between pixel values [B, 3, T, H, W] and ids [B, t, h, w], or [B, n] of multi-scale ids."""

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids."""
        ...

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values of int64 ids, in the range of the input, not clamped."""
        ...


class DiscreteEncoder:
    """An `interfaces.Encoder` around a tokenizer on its device.

    levels: float32 [256], what the tokenizer is fed for each of the 256 levels of a pixel, as the published code
    computes it: a table is the same on every device, where a division is not.
    """

    def __init__(
        self, tokenizer: Tokenizer, spec: LatentSpec, device: torch.device, levels: torch.Tensor
    ) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._device = device
        self._levels = levels.to(device)

    @torch.inference_mode()
    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to int64 ids [B, t, h, w], or [B, n] where they have several scales."""
        expected = check_clip(self.spec, pixels_BTHWC)
        with deterministic(self._device):
            ids = self._tokenizer.to_ids(to_values(pixels_BTHWC, self._levels))
        check_encoded(self.spec, ids, (len(pixels_BTHWC), *expected))
        return ids.long()

    @torch.inference_mode()
    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode ids, of any integer type, to uint8 pixels [B, T, H, W, 3] on the CPU."""
        ids = check_ids(self.spec, latents_BCthw).to(self._device)
        with deterministic(self._device):
            values = self._tokenizer.to_values(ids)
        return to_pixels(values, self.spec.pixel_range)


def check_clip(spec: LatentSpec, pixels_BTHWC: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of one clip's ids. Raises EncoderError and GeometryError, as `check_pixels` does."""
    check_pixels(dataclasses.replace(spec, stored="mean", ids=None), pixels_BTHWC)
    return spec.latent_shape(*pixels_BTHWC.shape[1:4])


def check_ids(spec: LatentSpec, ids: torch.Tensor) -> torch.Tensor:
    """Return a batch of ids as int64. Raises EncoderError where they are not ids of this encoder."""
    what = spec.ids
    assert what is not None
    axes = "[B, n] of all scales" if what.scales else "[B, t, h, w]"
    of_scales = (sum(side * side for side in what.scales),) if what.scales else ids.shape[1:2]
    axes_fit = ids.ndim == (2 if what.scales else 4) and ids.shape[1:2] == of_scales
    if not axes_fit or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise EncoderError(
            f"{spec.model_class} decodes whole numbers {axes}, not {ids.dtype} {list(ids.shape)}"
        )
    return check_range(spec, what, ids.long())


def check_range(spec: LatentSpec, what: IdSpec, ids: torch.Tensor) -> torch.Tensor:
    """Return int64 ids. Raises EncoderError where one is outside the codebook."""
    low, high = torch.aminmax(ids)
    if low < 0 or high >= what.codebook_size:
        raise EncoderError(
            f"{spec.model_class} has the codes 0 to {what.codebook_size - 1}, and ids go from "
            f"{int(low)} to {int(high)}. Take special ids out before decoding; ids that an encoder "
            "gave are from another model than the spec's."
        )
    return ids


def to_values(pixels_BTHWC: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return contiguous values [B, 3, T, H, W] on the device of `levels`, a table of 256."""
    pixels_BCTHW = pixels_BTHWC.to(levels.device).permute(0, 4, 1, 2, 3).contiguous()
    return levels[pixels_BCTHW.int()]


def to_pixels(values_BCTHW: torch.Tensor, pixel_range: tuple[float, float]) -> torch.Tensor:
    """Return uint8 pixels [B, T, H, W, 3] on the CPU, clamped to the range and rounded."""
    low, high = pixel_range
    levels = ((values_BCTHW.float() - low) / (high - low)).clamp_(0, 1).mul_(255).round_()
    return levels.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu()


def nearest_code(vectors_NC: torch.Tensor, codebook_KC: torch.Tensor) -> torch.Tensor:
    """Return the int64 index [N] of the nearest code by Euclidean distance, the first of equal ones."""
    squares = codebook_KC.square().sum(1)
    indices = [
        (rows.square().sum(1, keepdim=True) + squares)
        .addmm_(rows, codebook_KC.T, alpha=-2)
        .argmin(1)
        for rows in vectors_NC.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(indices)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Run CUDA's convolutions deterministically and in true float32; nothing to do on a CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield
