"""Some latent frames of stored samples, out of whole ones."""

from __future__ import annotations

from collections.abc import Sequence

#: For each sample the latent frames to read, None for all.
Picks = Sequence[Sequence[int] | None]


def picked_shape(shape: tuple[int, ...], frames: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of some latent frames of a sample [.., t, h, w]; multi-scale ids [n] come whole."""
    if frames is None or len(shape) < 3:
        return shape
    return (*shape[:-3], len(frames), *shape[-2:])
