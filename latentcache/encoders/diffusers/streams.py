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

from latentcache.encoders.streaming import joined

Groups = Iterator[torch.Tensor]
Pieces = Generator[torch.Tensor, None, None]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """How a class streams. sizes: of the first group and of all others, for a number of frames.

    run: takes the model, the groups, and the number of latent frames that they are encoded to.
    """

    sizes: Callable[[int], tuple[int, int]]
    run: Callable[[Any, Groups, int], Pieces]


#: Latent frames that the class's distribution takes at once: it holds five times what it is given.
_TAKEN = 8


def _moments(vae: Any, encoded: torch.Tensor) -> torch.Tensor:
    """Put mean and clamped log-variance in the place of what the model gives, and return it.

    They are as the class's distribution gives them, which looks at each value by itself.
    """
    distribution = sys.modules[type(vae).__module__].DiagonalGaussianDistribution
    for part in torch.split(encoded, _TAKEN, dim=2):
        posterior = distribution(part)
        part.copy_(torch.cat([posterior.mean, posterior.logvar], dim=1))
    return encoded


def _wan(vae: Any, groups: Groups, latent_frames: int) -> Pieces:
    vae.clear_cache()
    encoded = joined(_wan_groups(vae, groups), latent_frames, axis=2)
    yield _moments(vae, vae.quant_conv(encoded))


def _wan_groups(vae: Any, groups: Groups) -> Pieces:
    patch = getattr(vae.config, "patch_size", None)
    for group in groups:
        if patch is not None:
            group = sys.modules[type(vae).__module__].patchify(group, patch_size=patch)
        vae._enc_conv_idx = [0]
        yield vae.encoder(group, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx)


def _magvit(vae: Any, groups: Groups, latent_frames: int) -> Pieces:
    encoded = joined(map(vae.encoder, groups), latent_frames, axis=2)
    yield _moments(vae, vae.quant_conv(encoded))


def _cogvideox(vae: Any, groups: Groups, _: int) -> Pieces:
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
