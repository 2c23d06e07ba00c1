"""Ids of two sizes of one picture, as Muse's super-resolution takes them, with text states.

    python examples/views/muse.py CACHE_URL SMALL_CACHE_URL [TEXT_FIELD]

Both caches are of one corpus, with other sizes in `clips`, so a clip has the same key in both. Masks and
dropping belong to the trainer.
Published: github.com/lucidrains/muse-maskgit-pytorch (`cond_image_size=None`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import latentcache
from latentcache import LatentLoader, Pick, Record


class Both:
    """The ids of a picture, and those of the same picture in another cache."""

    def __init__(self, small: latentcache.Cache) -> None:
        self._small = small

    def make(self, record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:  # noqa: ARG002
        """Return grids [h, w] and [h', w']: a picture is a clip of one frame."""
        small = self._small[record.key]["latents"]
        return {"ids": arrays["latents"][0], "cond_token_ids": small[0]}


def batches(
    cache: latentcache.Cache, small: latentcache.Cache, text: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield `ids` [B, h, w], `cond_token_ids` [B, h', w'], and `text_embeds` [B, L, D]."""
    fields, names = ([text], {text: "text_embeds"}) if text else ([], {})
    yield from LatentLoader(cache, batch_size=4, view=Both(small), fields=fields, names=names)


if __name__ == "__main__":
    large, small = map(latentcache.open_cache, sys.argv[1:3])
    for batch in batches(large, small, *sys.argv[3:]):
        print(list(batch["ids"].shape), list(batch["cond_token_ids"].shape), batch["key"])
