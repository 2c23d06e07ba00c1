"""The base of the families: checks that are the same for each."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Generic, Self, TypeVar

import torch

from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.pretrained.loading import versions
from latentcache.encoders.text.cleaning import CLEANINGS, Cleaning, cleaning_facts
from latentcache.encoders.text.part import TextPart
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ClipError, EncoderError

SettingsT = TypeVar("SettingsT", bound=TextSettings)
#: Texts that a working encoder tells apart, in every array: HunyuanVideo 1.5 encodes quoted words, too.
_PROBES = ('A red square says "one"', 'Two big dogs: "hello"')


class Family(abc.ABC, Generic[SettingsT]):
    """A family's text encoder. Made without weights; `load` makes it a `TextEncoder`.

    A subclass sets `arrays`, `parts` and `facts` (what its recipe says besides), and encodes one text.
    Raises ConfigError if files are missing, or are another model's.
    """

    arrays: Mapping[str, TextArray]
    parts: tuple[TextPart, ...]
    facts: Mapping[str, object]
    cleaning: Cleaning = "none"
    source: ClassVar[str]
    """The code that the family follows."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.device: torch.device | None = None

    @abc.abstractmethod
    def states(self, text: str) -> EncodedText:
        """Encode one cleaned text, as the reference does."""

    def encode(self, text: str) -> EncodedText:
        """Encode one text by itself. Arrays are on the encoder's device, in its computing dtype.

        Raises ClipError("non_finite") for a text whose states are not finite.
        """
        if self.device is None:
            raise EncoderError(
                "this text encoder has no weights yet: build it with build_text_encoder"
            )
        with exact_kernels(self.device):
            encoded = self.states(CLEANINGS[self.cleaning](text))
        self._check(encoded)
        return encoded

    def load(self, device: torch.device) -> Self:
        """Load the weights of all parts, and check that two texts differ. Raises EncoderError."""
        for part in self.parts:
            part.load(self.dtype, device)
        self.device = device
        self._check_texts_differ()
        return self

    def recipe(self) -> dict[str, object]:
        """Return all that determines the values; where the files are is not part of it."""
        cleaning = cleaning_facts(self.cleaning)
        return {
            "kind": "text",
            "family": self.settings.family,
            "dtype": self.settings.dtype,
            "cleaning": cleaning,
            "arrays": {
                name: {"shape": list(array.shape), "padding": array.padding, "side": array.side}
                for name, array in self.arrays.items()
            },
            "parts": {part.name: part.recipe() for part in self.parts},
            "packages": versions("tokenizers"),
            **self.facts,
        }

    def _check(self, encoded: EncodedText) -> None:
        for name, array in self.arrays.items():
            found = encoded.arrays[name]
            shape = tuple(found.shape)
            fits = shape == array.shape
            if array.ragged:
                fits = shape[1:] == array.shape[1:] and shape[0] <= array.shape[0]
            if not fits or found.dtype != self.dtype:
                raise EncoderError(
                    f"{self.settings.family} gave {name} as {found.dtype} {list(shape)}, and its "
                    f"checkpoint says {self.dtype} {list(array.shape)}. This version of "
                    "transformers gives other states than the family's, or config.json and weights are of "
                    "different models."
                )
            if not bool(found.isfinite().all()):
                raise ClipError("non_finite", f"{name} of the text has NaN or infinity")

    def _check_texts_differ(self) -> None:
        first, second = (self.encode(text).arrays for text in _PROBES)
        for name in self.arrays:
            rows = min(len(first[name]), len(second[name]))
            if rows and torch.equal(first[name][-rows:], second[name][-rows:]):
                raise EncoderError(
                    f"{self.settings.family}: two different texts give the same {name}, so the model in "
                    "use does not read its input. Its weights are damaged, or this version of "
                    f"transformers ({versions()['transformers']}) loads them wrongly: install another."
                )
