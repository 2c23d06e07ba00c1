"""The bases of the families: checks that are the same for each, of texts and of texts with images."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import ClassVar, Generic, Self, TypeVar

import torch

from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.pretrained.loading import versions
from latentcache.encoders.text.cleaning import CLEANINGS, Cleaning, cleaning_facts
from latentcache.encoders.text.part import TextPart
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ClipError, ConfigError, EncoderError

SettingsT = TypeVar("SettingsT", bound=TextSettings)
#: Texts that a working encoder tells apart, in every array: HunyuanVideo 1.5 encodes quoted words, too.
PROBES = ('A red square says "one"', 'Two big dogs: "hello"')


class BaseFamily(abc.ABC, Generic[SettingsT]):
    """A family's encoder. Made without weights; `load` makes it one that encodes.

    A subclass sets `arrays`, `parts` and `facts` (what its recipe says besides), and encodes.
    Raises ConfigError if files are missing, or are another model's.
    """

    arrays: Mapping[str, TextArray]
    parts: tuple[TextPart, ...]
    facts: Mapping[str, object]
    cleaning: Cleaning = "none"
    source: ClassVar[str]
    """The code that the family follows."""
    length_keys: ClassVar[Mapping[str, str]] = {}
    """The settings that say the lengths of arrays, where it is not `length`."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.device: torch.device | None = None

    @abc.abstractmethod
    def check_reads_input(self) -> None:
        """Raise EncoderError if what is encoded does not depend on what is given."""

    def encoded(self, text: str, encode: Callable[[str], EncodedText]) -> EncodedText:
        """Encode a text, cleaned, and check the arrays. Raises EncoderError, ClipError("non_finite")."""
        if self.device is None:
            raise EncoderError(
                "this text encoder has no weights yet: build it with build_text_encoder"
            )
        with exact_kernels(self.device):
            encoded = encode(CLEANINGS[self.cleaning](text))
        self._check(encoded)
        return encoded

    def load(self, device: torch.device) -> Self:
        """Load the weights of all parts, and check that they read their input. Raises EncoderError."""
        for part in self.parts:
            part.load(self.dtype, device)
        self.device = device
        self.check_reads_input()
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

    def check_differ(self, first: EncodedText, second: EncodedText, what: str) -> None:
        """Raise EncoderError if two inputs, `what` they are, gave the same array.

        Raises ConfigError if that is because too short a length cut off what tells them apart.
        """
        for name, array in self.arrays.items():
            one, other = first.arrays[name], second.arrays[name]
            rows = min(len(one), len(other))
            if rows and torch.equal(one[-rows:], other[-rows:]):
                if array.padding is not None and rows == array.shape[0]:
                    self._check_room(name, min(first, second, key=lambda text: text.lost_tokens))
                raise EncoderError(
                    f"{self.settings.family}: two different {what} give the same {name}, so the model in "
                    "use does not read its input. Its weights are damaged, or this version of "
                    f"transformers ({versions()['transformers']}) loads them wrongly: install another."
                )

    def _check_room(self, name: str, encoded: EncodedText) -> None:
        """Raise ConfigError if a probe lost tokens: the length may have cut off what was to differ."""
        if encoded.lost_tokens:
            key = self.length_keys.get(name, "length")
            raise ConfigError(
                f"{key}: {getattr(self.settings, key)} leaves no room for the text: a short one is cut "
                f"before it differs from another, and lost {encoded.lost_tokens} tokens. Set a larger "
                f"{key}, or leave it out; if that does not help, the weights are damaged."
            )


class Family(BaseFamily[SettingsT]):
    """A family's text encoder: a `TextEncoder` once it is loaded. A subclass encodes one text."""

    @abc.abstractmethod
    def states(self, text: str) -> EncodedText:
        """Encode one cleaned text, as the reference does."""

    def encode(self, text: str) -> EncodedText:
        """Encode one text by itself. Arrays are on the encoder's device, in its computing dtype.

        Raises ClipError("non_finite") for a text whose states are not finite.
        """
        return self.encoded(text, self.states)

    def check_reads_input(self) -> None:
        """Raise EncoderError if two texts give the same states."""
        first, second = map(self.encode, PROBES)
        self.check_differ(first, second, "texts")
