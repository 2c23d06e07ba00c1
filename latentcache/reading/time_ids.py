"""SDXL's condition on sizes: six numbers per clip, of the picture and of the crop that was encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch

from latentcache.errors import CacheError

#: What batches call it, as the models do.
TIME_IDS = "time_ids"
#: Height and width as shown, top and left of the crop in the resized picture, height and width of the crop.
_FACTS = ("display_height", "display_width", "crop_top", "crop_left", "height", "width")


def time_ids(columns: Mapping[str, pa.Array], position: int) -> torch.Tensor:
    """Return the numbers of a row of a sample table, float32 [6]. Raises CacheError if it lacks one."""
    values = [columns[name][position].as_py() for name in _FACTS]
    if None in values:
        raise CacheError(
            f"time_ids: the clip {columns['key'][position]} has no {_FACTS[values.index(None)]} in its "
            "sample table, since its latents were taken in from elsewhere. Leave time_ids out of `columns`."
        )
    return torch.tensor(values, dtype=torch.float32)


def stacked(columns: Mapping[str, Sequence[object]]) -> dict[str, torch.Tensor]:
    """Return the numbers of a batch as one tensor [B, 6], if these are among its columns."""
    values = [value for value in columns.get(TIME_IDS, ()) if isinstance(value, torch.Tensor)]
    return {TIME_IDS: torch.stack(values)} if values else {}
