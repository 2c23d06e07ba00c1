"""Masks of pixels, such as those of segmented objects, as masks of latents."""

from __future__ import annotations

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError


def latent_masks(masks: torch.Tensor, spec: LatentSpec) -> torch.Tensor:
    """Return which latents masks touch, bool [.., t, h, w], of bool masks of pixel frames [.., T, H, W].

    A latent frame stands for several pixel frames (`spec.pixel_frames`), and a latent for a square of
    pixels: it is in the mask if one of them is. Raises GeometryError where the encoder cannot take such a
    clip, ConfigError where these are no masks.
    """
    if masks.dtype != torch.bool or masks.ndim < 3:
        raise ConfigError(
            f"latent_masks: masks are {masks.dtype} {list(masks.shape)}. Give bool [.., T, H, W], such as "
            "values > 0.5."
        )
    *first, frames, height, width = masks.shape
    spec.check_frames(frames)
    spec.check_size(height, width)
    st, sh, sw = spec.stride
    t = -(-frames // st)
    cells = masks.reshape(*first, frames, height // sh, sh, width // sw, sw).any(-1).any(-2)
    ranges = [spec.pixel_frames(n, frames) for n in range(t)]
    return torch.stack([cells[..., start:stop, :, :].any(-3) for start, stop in ranges], dim=-3)
