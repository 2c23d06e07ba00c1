"""Windows of ids as 1xgpt's Genie takes them: 16 frames, `input_ids` and `labels` int64 [B, 16 * h * w].

    python examples/views/genie.py CACHE_URL     (a cache of ids of a tokenizer of single frames)

Corruption, masks and factorising belong to the trainer. Published: github.com/1x-technologies/1xgpt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import latentcache
from latentcache import LatentLoader, Pick, Record, Window


class Genie(Window):
    """A window whose ids are one sequence."""

    def make(self, record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:
        """Return the sequence twice: the trainer corrupts the first."""
        ids = super().make(record, arrays, pick)["latents"].flatten()
        return {"input_ids": ids, "labels": ids.clone()}


def batches(cache: latentcache.Cache, frames: int = 16, step: int = 1) -> Iterator[dict[str, Any]]:
    """Yield every window of every source once, in random order; none goes across a column `segment`."""
    yield from LatentLoader(cache, batch_size=4, view=Genie(frames, step, start="all"))


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["input_ids"].shape), batch["key"])
