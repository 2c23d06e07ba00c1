"""An encoder as it would be with batches of one clip and plain kernels, to say what others change."""

from __future__ import annotations

import torch

from latentcache.encoders import out_of_memory
from latentcache.encoders.difference import difference
from latentcache.encoders.kernels import PLAIN
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.tiled import TiledEncoder

#: Clips of each bucket that are compared: the first rows of shard 0.
MEASURED = 3


class _Plain:
    """Encodes with plain kernels, and decodes as the encoder does."""

    def __init__(self, encoder: Encoder) -> None:
        self.spec = encoder.spec
        self.encode = getattr(encoder, "encode_plain", encoder.encode)
        self._encoder = encoder

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._encoder.decode(latents_BCthw)


def kernel_error(
    encoder: Encoder,
    pixels_BTHWC: torch.Tensor,
    encoded: torch.Tensor,
    *,
    batch: int,
    shard: int,
    row: int,
) -> float | None:
    """Return how far a clip's encoding is from that by itself with plain kernels: see `difference`.

    batch: clips that were encoded at once. None: the clip is not in the sample, nothing was chosen that
    changes bits, or the GPU has no memory for it.
    """
    if shard or row >= MEASURED or (batch == 1 and has_plain_kernels(encoder)):
        return None
    expected = out_of_memory.try_encode(_plain(encoder), pixels_BTHWC)
    return None if expected is None else difference(encoder.spec, expected, encoded)


def has_plain_kernels(encoder: Encoder) -> bool:
    """Tell whether an encoder runs as its model's own call does."""
    inner = encoder.untiled if isinstance(encoder, TiledEncoder) else encoder
    return bool(getattr(inner, "kernels", PLAIN) == PLAIN)


def _plain(encoder: Encoder) -> Encoder:
    if isinstance(encoder, TiledEncoder):
        return TiledEncoder(_Plain(encoder.untiled), encoder.spec, encoder.tiling)
    return _Plain(encoder)
