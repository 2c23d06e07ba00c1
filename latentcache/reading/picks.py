"""Some latent frames of stored samples, out of whole ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: For each sample the latent frames to read, None for all.
Picks = Sequence[Sequence[int] | None]


def picked_shape(shape: tuple[int, ...], frames: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of some latent frames of a sample [.., t, h, w]; multi-scale ids [n] come whole."""
    if frames is None or len(shape) < 3:
        return shape
    return (*shape[:-3], len(frames), *shape[-2:])


def copy_frames(whole: torch.Tensor, frames: Sequence[int] | None, out: torch.Tensor) -> None:
    """Copy latent frames of a whole sample to `out`, byte for byte, whatever their dtype."""
    if frames is None or whole.ndim < 3:
        out.copy_(whole)
        return
    wanted = whole.view(torch.uint8).index_select(-3, torch.tensor(list(frames)))
    out.view(torch.uint8).copy_(wanted)
