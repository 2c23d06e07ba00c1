"""Tokenizers of single frames take long clips in groups: as many frames as their network takes at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.tokenizers.discrete import FRAMES_AT_ONCE, DiscreteEncoder


class PerFrameEncoder(DiscreteEncoder):
    """A `streaming.StreamingEncoder` whose tokenizer splits a clip into FRAMES_AT_ONCE frames by itself."""

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode one clip in groups of frames; yields the ids of as many as `encode` computes together."""
        checked = check_stream(self.spec, groups, frames)
        for group in regroup(checked, frames, FRAMES_AT_ONCE, FRAMES_AT_ONCE, rest=True):
            yield self.encode(group)
