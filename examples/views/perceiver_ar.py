"""Crops of long sequences of ids, as Perceiver AR takes them: tokens, the next ones, and their positions.

    python examples/views/perceiver_ar.py CACHE_URL

Ids begin at 3, behind PAD 0, EOS 1 and SOS 2. Published: github.com/google-research/perceiver-ar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import latentcache
from latentcache import LatentLoader, Tokens


def batches(cache: latentcache.Cache, context: int = 4096) -> Iterator[dict[str, Any]]:
    """Yield `events` and `targets` [B, context], and `event_idxs` [B, context, 3], all int64."""
    view = Tokens(context, shift=True, bos=2, offset=3, positions=True)
    names = {"tokens": "events", "positions": "event_idxs"}
    for batch in LatentLoader(cache, batch_size=4, view=view, names=names):
        yield {**batch, "event_idxs": batch["event_idxs"] + 1}  # theirs count from 1


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["events"].shape), batch["start"].tolist())
