"""Which clips are encoded at once. It follows from the plan, so that no bit depends on who runs it.

`encoders.resolve` wraps an encoder's module in this if the configuration has a key `encoder.batch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field

from latentcache.config.base import Positive, Section
from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.encoders.protocol import Encoder, EncoderModule

#: Pixels of all frames that `auto` encodes at once: 32 images of 256x256, 8 of 512x512, one clip of
#: 17x256x256 or larger. The first layers of an image autoencoder then take about a gigabyte in float32.
AUTO_PIXELS = 1 << 21
#: Clips that `auto` encodes at once at the most.
AUTO_CLIPS = 32


class Batching(Section):
    """The key `encoder.batch`, which any encoder can have."""

    batch: Positive | Literal["auto"] = Field(
        default=1,
        description="Clips of a shard that are encoded at once; auto: as many as have about 2 million "
        "pixels, so 32 images of 256x256 and one video clip. It changes last bits.",
    )

    def clips_at_once(self, bucket: Bucket) -> int:
        """Return how many clips of a bucket are encoded at once."""
        if self.batch != "auto":
            return self.batch
        pixels = bucket.frames * bucket.height * bucket.width
        return max(1, min(AUTO_CLIPS, AUTO_PIXELS // pixels))

    def identity(self) -> Mapping[str, Any]:
        """Return what the recipe says of it: nothing for 1, so that those recipes stay."""
        if self.batch == 1:
            return {}
        if self.batch == "auto":
            return {"batch": {"pixels": AUTO_PIXELS, "clips": AUTO_CLIPS}}
        return {"batch": self.batch}


class BatchedModule:
    """A `protocol.EncoderModule` around another one, whose configuration it has."""

    def __init__(self, module: EncoderModule, batching: Batching) -> None:
        self.Config: type[BaseModel] = module.Config
        self.module = module
        self.batching = batching

    def describe(self, config: Any, *, dtype: str) -> LatentSpec:
        """Return the other's spec."""
        return self.module.describe(config, dtype=dtype)

    def identity(self, config: Any) -> Mapping[str, Any]:
        """Return the encoder's part of the recipe: the other's, and the batch."""
        return {**self.module.identity(config), **self.batching.identity()}

    def build(self, config: Any, *, spec: LatentSpec, device: torch.device) -> Encoder:
        """Build the other encoder, which takes batches as it is."""
        return self.module.build(config, spec=spec, device=device)


def batching_of(raw: Mapping[str, Any]) -> Batching:
    """Return what a configuration's section `encoder`, which is checked already, says of batches."""
    return Batching(batch=raw.get("batch", 1))


def batches(num_rows: int, at_once: int) -> Iterator[range]:
    """Yield the rows of a shard that are encoded at once: neighbours, failed and retired rows too."""
    for start in range(0, num_rows, at_once):
        yield range(start, min(num_rows, start + at_once))
