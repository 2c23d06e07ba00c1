"""Values per frame, such as actions, in samples and batches. Axes: B batch, T frames, n numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from latentcache.format.per_frame import to_numpy


def per_frame_tensor(values: pa.Scalar) -> torch.Tensor | None:
    """Return a clip's values as a tensor [T] or [T, n], of the column's own type; None if it has none."""
    found = to_numpy(values)
    return None if found is None else torch.from_numpy(found)


def stack_per_frame(
    values: Sequence[torch.Tensor | None], frames: int | None = None
) -> torch.Tensor | list[Any]:
    """Return the values of a batch [B, T] or [B, T, n], of the first `frames` frames of each clip.

    A list where clips lack them, or have vectors of several lengths: caches that grew, or were merged.
    """
    cut = [None if value is None else value[:frames] for value in values]
    there = [value for value in cut if value is not None]
    if len(there) < len(cut) or len({value.shape for value in there}) != 1:
        return cut
    kind = there[0].dtype
    for value in there[1:]:
        kind = torch.promote_types(kind, value.dtype)
    return torch.stack([value.to(kind) for value in there])
