"""What a text encoder is to the rest of latentcache: one text in, named arrays out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

Padding = Literal["zeros", "attended", "mask"]
"""What stands past a text's own tokens, and what the model does with it.

``zeros``: zeros up to the fixed length, and they are attended: the text's own states are stored,
and a reader gives back exactly the fixed length (Wan, Cosmos 1 and 2). ``attended``: the states of
the padding are attended: all are stored (CogVideoX, FLUX, SD3). ``mask``: the model gets a mask:
the text's own states and their number are stored (HunyuanVideo, LTX, Qwen-Image, Mochi).
"""


@dataclass(frozen=True, slots=True)
class TextArray:
    """One array that a text encoder gives per text.

    ``shape`` is what a model takes: ``(length, width)`` of states, ``(width,)`` of a pooled vector.
    ``padding`` is None where there is no axis of tokens. ``side`` is where the padding stands.
    """

    shape: tuple[int, ...]
    padding: Padding | None
    side: Literal["left", "right"] = "right"

    @property
    def ragged(self) -> bool:
        """Whether fewer rows than ``shape[0]`` may be stored: padding is not, where it follows."""
        return self.padding in ("zeros", "mask")


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text's arrays, by name: ``[tokens, width]`` where the array is ragged, else its shape.

    ``tokens`` is the number of tokens that are not padding, after a template's cut: the rows of a
    ragged first array. Another ragged array has its own number of rows, and may have none.
    ``lost_tokens`` is the number that the reference's lengths cut off, in all ragged arrays that have
    lengths of their own. Both count special tokens and the template's end, as the model sees them; with
    several tokenizers of one array, they are of the one that sees most of the text.
    """

    arrays: Mapping[str, torch.Tensor]
    tokens: int
    lost_tokens: int


class TextEncoder(Protocol):
    """A text encoder on its device, in its computing dtype."""

    arrays: Mapping[str, TextArray]
    """The arrays by name. The first is the field itself; the others are the field's ``name``."""

    def encode(self, text: str) -> EncodedText:
        """Encode one text by itself, so that its bits follow from the text and nothing else."""
        ...

    def recipe(self) -> dict[str, object]:
        """All that determines the values: classes, files' sha256, template, lengths, cleaning."""
        ...
