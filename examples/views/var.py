"""Multi-scale ids as VAR takes them: targets int64 [B, 680], and its transformer's input [B, 679, 32].

    python examples/views/var.py CACHE_URL     (a cache of kind var, with corpus.keep: [label])

The cache's own quantiser makes the input, so the trainer loads no tokenizer. Random crops are frozen when
they are cached: cache several. Published: github.com/FoundationVision/VAR.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

import latentcache
from latentcache import LatentLoader, MultiScale

#: What the published training step calls them.
NAMES = {"ids": "gt_BL", "teacher_input": "x_BLCv_wo_first_l"}


def batches(cache: latentcache.Cache) -> Iterator[dict[str, Any]]:
    """Yield `gt_BL`, `x_BLCv_wo_first_l` and `label_B`."""
    for batch in LatentLoader(cache, batch_size=4, view=MultiScale(), names=NAMES):
        label = {"label_B": torch.tensor(batch.pop("label"))} if "label" in batch else {}
        yield {**batch, **label}


if __name__ == "__main__":
    for batch in batches(latentcache.open_cache(sys.argv[1])):
        print(list(batch["x_BLCv_wo_first_l"].shape), batch["key"])
