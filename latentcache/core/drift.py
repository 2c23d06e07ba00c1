"""Drift: how far the latents of a round trip are from those that were decoded for it. Pure."""

from __future__ import annotations

import math

import torch


def drift(before: torch.Tensor, after: torch.Tensor) -> float | None:
    """Return the RMS of the difference over the RMS of `before` about its channels' means.

    before, after: latents [C, t, h, w] of any float types; of a shorter one the first frames count. Of ids
    [t, h, w] or [n], whole numbers: the part that differs. None if `before` is the same everywhere, or the
    two are of different sizes.
    """
    is_ids = not before.is_floating_point()
    time = 0 if is_ids else 1
    frames = min(before.shape[time], after.shape[time])
    before, after = before.narrow(time, 0, frames), after.narrow(time, 0, frames)
    if before.shape != after.shape:
        return None
    if is_ids:
        return float((before != after).double().mean())
    old, new = before.double(), after.double()
    spread = (old - old.mean((1, 2, 3), keepdim=True)).square().mean()
    if not spread > 0:
        return None
    found = math.sqrt((new - old).square().mean() / spread)
    return found if math.isfinite(found) else None
