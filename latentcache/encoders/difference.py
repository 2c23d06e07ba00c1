"""How far one encoding of a clip is from another. Pure."""

from __future__ import annotations

import math

import torch

from latentcache.core.spec import LatentSpec


def difference(spec: LatentSpec, expected: torch.Tensor, got: torch.Tensor) -> float | None:
    """Return how far one clip's encoding is from the expected one, both as an encoder gives them.

    Ids: the share that differs. Others: the root mean square of the difference of the means, divided by
    the expected latent's standard deviation, which is the root mean square of its difference from each
    channel's own mean. None if that is 0 or not finite.
    """
    if spec.ids is not None:
        return float((expected != got).double().mean())
    wanted, found = expected[:, : spec.channels].double(), got[:, : spec.channels].double()
    spread = wanted - wanted.mean((-3, -2, -1), keepdim=True)
    variance = float(spread.square().mean())
    if not variance:
        return None
    error = math.sqrt(float((found - wanted).square().mean()) / variance)
    return error if math.isfinite(error) else None
