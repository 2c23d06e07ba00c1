"""How the autoencoders of diffusers take a clip in groups of frames: as their own `_encode` cuts it.

Each function is given the model and groups [B, 3, T, H, W] in the model's range, of the sizes that `sizes`
says, and yields moments along the latents' time. A convolution that the class runs over the whole clip at
the end is run over the whole here too, for another size may round otherwise; what is kept for that is of
the latents' size. The caller clears what the model keeps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Groups = Iterator[torch.Tensor]
Pieces = Generator[torch.Tensor, None, None]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """How a class streams. sizes: of the first group and of all others, for a number of frames."""

    sizes: Callable[[int], tuple[int, int]]
    run: Callable[[Any, Groups], Pieces]


def _moments(vae: Any, encoded: torch.Tensor) -> torch.Tensor:
    """Return mean and clamped log-variance, as the class's distribution gives them."""
    posterior = sys.modules[type(vae).__module__].DiagonalGaussianDistribution(encoded)
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


def _wan(vae: Any, groups: Groups) -> Pieces:
    vae.clear_cache()
    patch = getattr(vae.config, "patch_size", None)
    parts = []
    for group in groups:
        if patch is not None:
            group = sys.modules[type(vae).__module__].patchify(group, patch_size=patch)
        vae._enc_conv_idx = [0]
        parts.append(vae.encoder(group, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    yield _moments(vae, vae.quant_conv(torch.cat(parts, dim=2)))


def _magvit(vae: Any, groups: Groups) -> Pieces:
    parts = [vae.encoder(group) for group in groups]
    yield _moments(vae, vae.quant_conv(torch.cat(parts, dim=2)))


def _cogvideox(vae: Any, groups: Groups) -> Pieces:
    cache = None
    for group in groups:
        encoded, cache = vae.encoder(group, conv_cache=cache)
        if vae.quant_conv is not None:
            encoded = vae.quant_conv(encoded)
        yield _moments(vae, encoded)


def _cogvideox_sizes(frames: int) -> tuple[int, int]:
    """Batches of 8; the first one has the frames that are left over, too."""
    return (min(frames, 8 + frames % 8), 8)


#: By class. Others see the whole clip, or more of it than a group.
STREAMS = {
    "AutoencoderKLWan": Streamed(sizes=lambda _: (1, 4), run=_wan),
    "AutoencoderKLQwenImage": Streamed(sizes=lambda _: (1, 4), run=_wan),
    "AutoencoderKLMagvit": Streamed(sizes=lambda _: (1, 4), run=_magvit),
    "AutoencoderKLCogVideoX": Streamed(sizes=_cogvideox_sizes, run=_cogvideox),
}
