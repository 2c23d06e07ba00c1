"""What every encoder checks of its input and of its own output."""

from __future__ import annotations

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import EncoderError


def check_pixels(spec: LatentSpec, pixels_BTHWC: torch.Tensor) -> tuple[int, int, int]:
    """Return the latent's (t, h, w) for a batch of pixels.

    Raises EncoderError if the batch is not uint8 [B, T, H, W, 3], and GeometryError if the encoder
    cannot take its T, H or W.
    """
    shape = tuple(pixels_BTHWC.shape)
    if pixels_BTHWC.dtype != torch.uint8 or len(shape) != 5 or shape[-1] != 3:
        raise EncoderError(
            f"{spec.model_class} encodes uint8 pixels [B, T, H, W, 3], "
            f"not {pixels_BTHWC.dtype} {list(shape)}"
        )
    *_, t, h, w = spec.latent_shape(*shape[1:4])
    return t, h, w


def check_latents(spec: LatentSpec, latents_BCthw: torch.Tensor) -> None:
    """Raise EncoderError if the batch is not latents [B, C, t, h, w] of this encoder."""
    shape = tuple(latents_BCthw.shape)
    if len(shape) == 5 and shape[1] == spec.channels:
        return
    hint = " These are moments: decode their mean." if shape[1:2] == (2 * spec.channels,) else ""
    raise EncoderError(
        f"{spec.model_class} decodes latents [B, {spec.channels}, t, h, w], "
        f"not {list(shape)}.{hint}"
    )


def check_ids(spec: LatentSpec, ids: torch.Tensor) -> torch.Tensor:
    """Return a batch of ids as int64. Raises EncoderError if they are not ids of this encoder."""
    what = spec.ids
    assert what is not None
    axes = "[B, n] of all scales" if what.scales else "[B, t, h, w]"
    of_scales = (sum(side * side for side in what.scales),) if what.scales else ids.shape[1:2]
    axes_fit = ids.ndim == (2 if what.scales else 4) and ids.shape[1:2] == of_scales
    if not axes_fit or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise EncoderError(
            f"{spec.model_class} decodes whole numbers {axes}, not {ids.dtype} {list(ids.shape)}"
        )
    low, high = torch.aminmax(ids.long())
    if low < 0 or high >= what.codebook_size:
        raise EncoderError(
            f"{spec.model_class} has the codes 0 to {what.codebook_size - 1}, but these ids go from "
            f"{int(low)} to {int(high)}. Take special ids out before decoding; if an encoder "
            "gave these ids, it has another model than the spec's."
        )
    return ids.long()


def check_encoded(spec: LatentSpec, encoded: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise EncoderError if an encoder did not return what its spec says."""
    if tuple(encoded.shape) != expected:
        raise EncoderError(
            f"{spec.model_class} returned {list(encoded.shape)}, but its spec says "
            f"{list(expected)}: stored, they would be read as something else. The model's config "
            "and its weights disagree, or this version of its package behaves differently."
        )
