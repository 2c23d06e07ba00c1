"""Crops of long sequences of ids, as Perceiver AR takes them: tokens, the next ones, and their positions.

    python examples/views/perceiver_ar.py CACHE_URL

Ids begin at 3, behind PAD 0, EOS 1 and SOS 2. Crops at the start of a clip may be shorter, down to what the
model predicts at a time (`z_index_dim`); they are filled up with PAD.
Published: github.com/google-research/perceiver-ar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import latentcache
from latentcache import LatentLoader, Tokens

NAMES = {"tokens": "events", "positions": "event_idxs"}


def batches(
    cache: latentcache.Cache, context: int = 4096, shortest: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield `events` and `targets` [B, context], and `event_idxs` [B, context, 3], all int64."""
    view = Tokens(context, shift=True, bos=2, offset=3, positions=True, shortest=shortest)
    names = NAMES if shortest is None else {**NAMES, "length": "input_length"}
    for batch in LatentLoader(cache, batch_size=4, view=view, names=names):
        real = (batch["events"] > 0)[..., None]
        yield {
            **batch,
            "event_idxs": batch["event_idxs"] + real,
        }  # theirs count from 1; 0 is padding


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["events"].shape), batch["start"].tolist())
