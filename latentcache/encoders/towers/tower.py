"""The base of the towers: a vision model of transformers and its checkpoint's image processor."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from PIL import Image
from pydantic import Field

from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.pretrained.images import ImageProcessor
from latentcache.encoders.pretrained.loading import (
    check_weights,
    class_of,
    load_config,
    load_model,
    number_of,
    versions,
)
from latentcache.encoders.pretrained.settings import PretrainedSettings
from latentcache.errors import ClipError, ConfigError, EncoderError


class TowerSettings(PretrainedSettings):
    """Base of every tower's settings."""

    family: str = Field(description="The tower.")
    frames: Literal["first", "first_last"] = Field(
        default="first", description="The clip's first frame; or its first and its last, joined."
    )


SettingsT = TypeVar("SettingsT", bound=TowerSettings)


class Tower(abc.ABC, Generic[SettingsT]):
    """An image tower. Made without weights; `load` makes it an `ImageTower`.

    Raises ConfigError and EncoderError if files are missing, or are another model's.
    """

    classes: ClassVar[tuple[str, ...]]
    processor_name: ClassVar[str]
    """The component of the image processor."""
    source: ClassVar[str]
    """The code that the tower follows."""
    facts: ClassVar[Mapping[str, object]]
    """What the recipe says besides."""

    arrays: Mapping[str, tuple[int, ...]]

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings
        checkpoint = settings.checkpoint()
        self._files = checkpoint.component("image_encoder")
        self.class_name = class_of(self._files, self.classes)
        self._config = load_config(self._files, "vision")
        self.processor = ImageProcessor(checkpoint.component(self.processor_name))
        self._check_processor()
        check_weights(self._files, self.class_name)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.num_frames = 2 if settings.frames == "first_last" else 1
        self.arrays = {"states": (self.num_frames * self.num_rows(), self.setting("hidden_size"))}
        self._model: Any = None

    @abc.abstractmethod
    def num_rows(self) -> int:
        """Return how many states one image has."""

    @abc.abstractmethod
    def states(self, model: Any, values: Any) -> torch.Tensor:
        """Run the model on what the processor gave; returns [N, L, D]."""

    def setting(self, key: str) -> int:
        """Return a number of the vision model's config. Raises ConfigError if it has none."""
        return number_of(self._files, self._config, key)

    @property
    def num_patches(self) -> int:
        """How many patches an image has."""
        return (self.setting("image_size") // self.setting("patch_size")) ** 2

    def recipe(self) -> dict[str, object]:
        """Return all that determines the values; where the files are is not part of it."""
        return {
            "kind": "image",
            "family": self.settings.family,
            "frames": self.settings.frames,
            "dtype": self.settings.dtype,
            "class": self.class_name,
            "weights_sha256": self._files.weights_sha256(),
            "config_sha256": self._files.config_sha256(),
            "processor": self.processor.recipe(),
            "packages": versions(self.processor.backend),
            **self.facts,
        }

    def load(self, device: torch.device) -> Self:
        """Load the weights, and check that two images differ. Raises EncoderError."""
        self._model = load_model(self._files, self.class_name, dtype=self.dtype, device=device)
        self._check_images_differ()
        return self

    def encode(self, frames_NHWC: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Encode the frames of one clip, uint8 [num_frames, H, W, 3], joined: [num_frames * L, D].

        Raises ClipError("non_finite") if states are not finite.
        """
        if self._model is None:
            raise EncoderError(
                "this image tower has no weights yet: build it with build_image_tower"
            )
        shape = tuple(frames_NHWC.shape)
        fits = len(shape) == 4 and shape[0] == self.num_frames and shape[3] == 3
        if frames_NHWC.dtype != torch.uint8 or not fits:
            raise EncoderError(
                f"{self.settings.family} encodes uint8 pixels [{self.num_frames}, H, W, 3], not "
                f"{frames_NHWC.dtype} {list(shape)}"
            )
        values = self._processed(frames_NHWC).to(self._model.device)
        with exact_kernels(self._model.device):
            found = self.states(self._model, values).flatten(0, 1)
        self._check(found)
        return {"states": found}

    def _processed(self, frames_NHWC: torch.Tensor) -> Any:
        images = [Image.fromarray(frame) for frame in frames_NHWC.cpu().numpy()]
        return self.processor(images)

    def _check_processor(self) -> None:
        side = self.setting("image_size")
        values = self._processed(torch.zeros(1, 48, 64, 3, dtype=torch.uint8))["pixel_values"]
        if tuple(values.shape) != (1, 3, side, side):
            raise ConfigError(
                f"{self.processor_name}: the image processor in {self.processor.component.folder} gives "
                f"{list(values.shape)}, and the model takes [1, 3, {side}, {side}]. It is another model's: "
                "name the folder of the model's own."
            )

    def _check(self, found: torch.Tensor) -> None:
        if tuple(found.shape) != self.arrays["states"] or found.dtype != self.dtype:
            raise EncoderError(
                f"{self.settings.family} gave {found.dtype} {list(found.shape)}, and its checkpoint says "
                f"{self.dtype} {list(self.arrays['states'])}. The image processor is another model's, or "
                "this version of transformers gives other states."
            )
        if not bool(found.isfinite().all()):
            raise ClipError("non_finite", "the states of the image have NaN or infinity")

    def _check_images_differ(self) -> None:
        black = torch.zeros(self.num_frames, 64, 64, 3, dtype=torch.uint8)
        halves = black.clone()
        halves[:, :, 32:] = 255
        first, second = (self.encode(frames)["states"] for frames in (black, halves))
        if torch.equal(first, second):
            raise EncoderError(
                f"{self.settings.family}: two different images give the same states, so the model does "
                "not read its input. Its weights are damaged, or this version of transformers "
                f"({versions()['transformers']}) loads them wrongly: install another."
            )
