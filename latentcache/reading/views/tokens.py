"""Ids as one sequence per clip: `Tokens`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from latentcache.core.arguments import whole_number
from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.reading.views.protocol import Pick, Record


@dataclass(frozen=True)
class Tokens:
    """Ids in raster order, frame after frame: `tokens` int64 [B, L] and `start` [B], in the whole sequence.

    context: L; a crop of the clip's sequence whose start is drawn, uniformly; None for all of it.
    shift: also `targets` [B, L], each token's next one. bos: an id that begins every clip's sequence.
    offset: is added to ids, to make room for others. positions: also `positions` [B, L, axes], where each
    token is in the whole clip, (t, y, x); with bos it is all 0, and the others count from 1.
    shortest: crops at a sequence's start may have as few tokens as this. All are filled up to L with 0,
    positions too, and `length` [B] is the place behind the crop's last token, targets included.
    """

    context: int | None = None
    shift: bool = False
    bos: int | None = None
    positions: bool = False
    offset: int = 0
    shortest: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("bos", 0), ("offset", 0), ("shortest", 1)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole_number(f"Tokens: {name}", value, least))
        if self.shortest is None:
            return
        if self.context is None or self.shortest > self.context:
            raise ConfigError(
                f"Tokens: shortest {self.shortest} is of crops, and context is {self.context}. Give a "
                "context of at least as many tokens."
            )
        if self.offset == 0 or self.bos == 0:
            raise ConfigError(
                f"Tokens: short crops are filled up with 0, but with offset {self.offset} and bos "
                f"{self.bos} 0 is a token, too. Give offset=1 or more, and a bos above 0."
            )

    def check(self, spec: LatentSpec, buckets: Mapping[str, int]) -> None:
        """Raise ConfigError where there are no ids, ids run into one another, or clips are too short."""
        if spec.ids is None:
            raise ConfigError(
                f"Tokens: {spec.model_class} gives latents, no ids. Cache the ids of a tokenizer, such as "
                "encoder.kind videogpt, or use Window."
            )
        if self.bos is not None and self.offset <= self.bos < self.offset + spec.ids.codebook_size:
            raise ConfigError(
                f"Tokens: bos {self.bos} is an id of the codebook, {self.offset} to "
                f"{self.offset + spec.ids.codebook_size - 1}, too. Give another, or offset=1 and bos=0."
            )
        for name in buckets:
            bucket = Bucket.parse(name)
            length = self._length(spec.latent_shape(bucket.frames, bucket.height, bucket.width))
            if self.shortest is None and length < self._num(length):
                raise ConfigError(
                    f"Tokens: context {self.context} needs {self._num(length)} ids, but clips of bucket "
                    f"{name} have {length}. Use a smaller context, or leave the bucket out: "
                    f"where=\"bucket != '{name}'\"."
                )
            if length - self.shift < 1:
                raise ConfigError(f"Tokens: shift leaves no id of clips of bucket {name}")

    def _length(self, shape: tuple[int, ...]) -> int:
        """Return the length of a clip's whole sequence."""
        return math.prod(shape) + (self.bos is not None)

    def _num(self, length: int) -> int:
        """Return how many ids of a sequence are taken: one more if there are targets."""
        return length if self.context is None else self.context + self.shift

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        """Choose the crop, and the latent frames that it is in."""
        shape = _shape(record)
        length = self._length(shape)
        end, num = self._crop(length, draw)
        start = end - num
        facts = {"start": start, "num": num}
        if len(shape) == 1:
            return Pick(facts=facts)
        each, first = shape[1] * shape[2], start - (self.bos is not None)
        last = max(0, first + num - 1) // each
        return Pick(frames=range(max(0, first) // each, last + 1), facts=facts)

    def _crop(self, length: int, draw: torch.Generator) -> tuple[int, int]:
        """Draw the end of a crop of a sequence, and how many of its tokens are before that."""
        num = self._num(length)
        least = num if self.shortest is None else min(self.shortest + self.shift, length)
        end = least + int(torch.randint(length - least + 1, (), generator=draw))
        return end, min(num, end)

    def make(
        self, record: Record, arrays: Mapping[str, torch.Tensor], pick: Pick
    ) -> dict[str, Any]:
        """Return the crop of the sequence."""
        shape, start, num = _shape(record), pick.facts["start"], pick.facts["num"]
        places = torch.arange(start, start + num) - int(self.bos is not None)
        first = pick.frames[0] * shape[1] * shape[2] if pick.frames else 0
        ids = arrays["latents"].reshape(-1).to(torch.int64) + self.offset
        tokens = ids[(places - first).clamp(min=0)]
        if self.bos is not None:
            tokens = torch.where(places < 0, self.bos, tokens)
        found = {"tokens": tokens}
        if self.shift:
            found = {"tokens": tokens[:-1], "targets": tokens[1:]}
        if self.positions:
            found["positions"] = self._positions(places[: num - self.shift], shape)
        if self.shortest is not None:
            found = {name: self._filled(crop) for name, crop in found.items()}
            found["length"] = torch.tensor(start + num)
        return {**found, "start": torch.tensor(start)}

    def _filled(self, crop: torch.Tensor) -> torch.Tensor:
        """Return a crop [n, ...] filled up with zeros to [context, ...]."""
        assert self.context is not None
        return torch.cat([crop, crop.new_zeros(self.context - len(crop), *crop.shape[1:])])

    def _positions(self, places: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return where ids are in the clip, int64 [L, axes]."""
        axes = torch.stack(torch.unravel_index(places.clamp(min=0), shape), dim=-1)
        if self.bos is None:
            return axes
        return torch.where(places[:, None] < 0, 0, axes + 1)

    def settings(self) -> Mapping[str, Any]:
        """Return its fields."""
        return dataclasses.asdict(self)


def _shape(record: Record) -> tuple[int, ...]:
    bucket = record.bucket
    return record.spec.latent_shape(bucket.frames, bucket.height, bucket.width)
