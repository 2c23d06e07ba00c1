"""The base of the families whose text is encoded together with images, such as a clip's first frame."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

import torch
from PIL import Image

from latentcache.encoders.pretrained.files import Checkpoint
from latentcache.encoders.pretrained.images import ImageProcessor
from latentcache.encoders.pretrained.loading import versions
from latentcache.encoders.text.family import PROBES, BaseFamily
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ClipError, ConfigError, EncoderError

SettingsT = TypeVar("SettingsT", bound=TextSettings)


class JointEncoder(Protocol):
    """An encoder of texts with images, on its device, in its computing dtype; see `TextEncoder`."""

    arrays: Mapping[str, TextArray]

    def encode(self, text: str, images: Sequence[torch.Tensor]) -> EncodedText:
        """Encode one text with its images, uint8 [H, W, 3] of any size, by itself."""
        ...

    def recipe(self) -> dict[str, object]:
        """All that determines the values."""
        ...


class JointFamily(BaseFamily[SettingsT]):
    """A family's encoder of texts with images: a `JointEncoder` once it is loaded.

    marks: what stands for an image in the tokenizer's words; a text that holds one is refused.
    """

    max_images: ClassVar[int | None] = 1
    """How many images it takes; None: any number."""
    marks: ClassVar[tuple[str, ...]]

    def __init__(self, settings: SettingsT, checkpoint: Checkpoint, processor: str) -> None:
        super().__init__(settings)
        self.processor = ImageProcessor(checkpoint.component(processor))

    @abc.abstractmethod
    def states(self, text: str, images: Sequence[Image.Image]) -> EncodedText:
        """Encode one cleaned text with its images, as the reference does."""

    def encode(self, text: str, images: Sequence[torch.Tensor]) -> EncodedText:
        """Encode one text with its images, uint8 [H, W, 3]; see `Family.encode`.

        Raises ClipError("image_mark") for a text that holds what stands for an image.
        """
        for image in images:
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise EncoderError(
                    f"{self.settings.family} takes images uint8 [H, W, 3], not {image.dtype} "
                    f"{list(image.shape)}"
                )
        self.check_images(len(images))
        for mark in self.marks:
            if mark in text:
                raise ClipError(
                    "image_mark", f"the text holds {mark}, which stands for an image in this model"
                )
        pictures = [Image.fromarray(image.cpu().numpy()) for image in images]
        return self.encoded(text, lambda cleaned: self.states(cleaned, pictures))

    def check_images(self, num: int) -> None:
        """Raise ConfigError unless the family takes so many images."""
        if num < 1 or (self.max_images is not None and num > self.max_images):
            takes = "1 or more" if self.max_images is None else str(self.max_images)
            raise ConfigError(f"images: {self.settings.family} takes {takes}, and {num} are given")

    def check_room(self, num_images: int) -> None:
        """Raise ConfigError if the length is too short for so many images and a text."""

    def recipe(self) -> dict[str, object]:
        """Return all that determines the values."""
        packages = versions("tokenizers", "pillow", self.processor.backend)
        facts = {"kind": "joint", "processor": self.processor.recipe(), "packages": packages}
        return {**super().recipe(), **facts}

    def check_reads_input(self) -> None:
        """Raise EncoderError if two texts, or two images, give the same states."""
        black = torch.zeros(64, 64, 3, dtype=torch.uint8)
        halves = black.clone()
        halves[:, 32:] = 255
        first = self.encode(PROBES[0], [black])
        self.check_differ(first, self.encode(PROBES[1], [black]), "texts")
        other = self.encode(PROBES[0], [halves])
        if torch.equal(first.arrays["states"], other.arrays["states"]):
            raise EncoderError(
                f"{self.settings.family}: two different images give the same states, so the model does "
                "not read its image. Its weights are damaged, or this version of transformers "
                f"({versions()['transformers']}) loads them wrongly: install another."
            )
