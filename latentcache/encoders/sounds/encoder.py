"""The base of the encoders of sound, and those of transformers with their feature extractor."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import Field

from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.pretrained.files import Checkpoint
from latentcache.encoders.pretrained.loading import (
    check_weights,
    class_of,
    load_config,
    load_feature_extractor,
    load_model,
    number_of,
    versions,
)
from latentcache.encoders.pretrained.settings import PretrainedSettings
from latentcache.encoders.sounds.protocol import SoundArray
from latentcache.errors import ClipError, ConfigError, EncoderError

_MODEL, _EXTRACTOR = "audio_encoder", "feature_extractor"
_CONFIG = "config.json"
#: What models of sound call the samples that they take.
_WAVES = "input_values"


class SoundSettings(PretrainedSettings):
    """Base of every encoder's settings. `model` may also be one folder, with a model's own files."""

    family: str = Field(description="The encoder.")

    def checkpoint(self, *components: str) -> Checkpoint:
        """Return the checkpoint on this machine; looks only where its config.json lies."""
        found = super().checkpoint()
        if found.model is None or not (found.model / _CONFIG).is_file():
            return found
        whole: dict[str, Path] = dict.fromkeys(components, found.model)
        return Checkpoint(
            model=found.model, folders={**whole, **found.folders}, variant=found.variant
        )


SettingsT = TypeVar("SettingsT", bound=SoundSettings)


class BaseEncoder(abc.ABC, Generic[SettingsT]):
    """An encoder of sound. Made without weights; `load` makes it a `SoundEncoder`.

    max_s: the longest span. Raises ConfigError and EncoderError if files are missing, or are another
    model's.
    """

    source: ClassVar[str]
    """The code that the encoder follows."""

    class_name: str
    rate: int
    channels: int
    arrays: Mapping[str, SoundArray]

    def __init__(self, settings: SettingsT, max_s: float) -> None:
        self.settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.open()
        steps = self.num_steps(round(max_s * self.rate))
        if steps < 1:
            raise ConfigError(f"seconds: {max_s} s of sound give {settings.family} not one step")
        self.arrays = {"states": SoundArray((steps, self.width()), self.stored_dtype())}
        self._model: Any = None

    @abc.abstractmethod
    def open(self) -> None:
        """Read configs, and set `class_name`, `rate` and `channels`. Raises ConfigError, EncoderError."""

    @abc.abstractmethod
    def load_weights(self, device: torch.device) -> Any:
        """Return the model on a device. Raises EncoderError."""

    @abc.abstractmethod
    def num_steps(self, num_samples: int) -> int:
        """Return how many steps so many samples give; below 1 if they are too few."""

    @abc.abstractmethod
    def width(self) -> int:
        """Return how many values a step has."""

    @abc.abstractmethod
    def states_of(self, model: Any, samples_NC: torch.Tensor) -> torch.Tensor:
        """Run the model on one clip's samples; returns [steps, width]."""

    @abc.abstractmethod
    def facts(self) -> Mapping[str, object]:
        """Return what the recipe says besides: files, packages and settings."""

    def stored_dtype(self) -> str:
        """Return what its arrays are."""
        return self.settings.dtype

    def recipe(self) -> dict[str, object]:
        """Return all that determines the values; where the files are is not part of it."""
        return {
            "kind": "audio",
            "family": self.settings.family,
            "dtype": self.settings.dtype,
            "rate": self.rate,
            "channels": self.channels,
            "class": self.class_name,
            **self.facts(),
        }

    def load(self, device: torch.device) -> Self:
        """Load the weights, and check that two sounds differ. Raises EncoderError."""
        self._model = self.load_weights(device)
        self._check_sounds_differ()
        return self

    def encode(self, samples_NC: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Encode one clip's sound, float32 [n, channels]; see `SoundEncoder.encode`."""
        if self._model is None:
            raise EncoderError("this encoder has no weights yet: build it with build_sound_encoder")
        steps = self.num_steps(len(samples_NC))
        if steps < 1:
            raise ClipError(
                "input_too_short",
                f"{len(samples_NC)} samples of sound are too few for a step of {self.settings.family}",
            )
        with exact_kernels(self._model.device), torch.inference_mode():
            found = self.states_of(self._model, samples_NC)
        self._check(found, steps)
        return {"states": found}

    def _check(self, found: torch.Tensor, steps: int) -> None:
        shape = (steps, self.width())
        if tuple(found.shape) != shape:
            raise EncoderError(
                f"{self.settings.family} gave {list(found.shape)}, and its checkpoint says {list(shape)}. "
                "Its files are of several models, or this version of its package gives others."
            )
        if not bool(torch.isfinite(found).all()):
            raise ClipError("non_finite", "the states of the sound have NaN or infinity")

    def _check_sounds_differ(self) -> None:
        times = torch.arange(self.rate, dtype=torch.float32)[:, None].expand(-1, self.channels)
        first, second = (
            self.encode(torch.sin(times * step) * 0.5)["states"] for step in (0.05, 0.5)
        )
        if torch.equal(first, second):
            raise EncoderError(
                f"{self.settings.family}: two different sounds give the same states, so the model does "
                "not read its input. Its weights are damaged, or this version of its package loads them "
                "wrongly: install another."
            )


class Encoder(BaseEncoder[SettingsT]):
    """An encoder of transformers. Its feature extractor says rate and channels."""

    classes: ClassVar[tuple[str, ...]]
    unused: ClassVar[tuple[str, ...]] = ()
    """How names of the model's tensors begin that its output does not depend on."""

    def open(self) -> None:
        """Read the config and the weights' headers, and load the feature extractor."""
        checkpoint = replace(
            self.settings.checkpoint(_MODEL, _EXTRACTOR), unused={_MODEL: self.unused}
        )
        self._files = checkpoint.component(_MODEL)
        self.class_name = class_of(self._files, self.classes)
        self._config = load_config(self._files, "audio")
        self._extractor_files = checkpoint.component(_EXTRACTOR)
        self.extractor = load_feature_extractor(self._extractor_files)
        self.rate = number_of(self._extractor_files, self.extractor, "sampling_rate")
        self.channels = number_of(self._extractor_files, self.extractor, "feature_size")
        self._check_extractor()
        self.check_config()
        check_weights(self._files, self.class_name)

    def _check_extractor(self) -> None:
        """Raise ConfigError unless it gives waves, and of the model's rate and channels.

        A config without rate or channels is of a model that takes one channel, at the extractor's rate.
        """
        name = next(iter(self.extractor.model_input_names), None)
        rate = getattr(self._config, "sampling_rate", self.rate)
        channels = getattr(self._config, "audio_channels", 1)
        if (name, self.rate, self.channels) == (_WAVES, rate, channels):
            return
        raise ConfigError(
            f"{_EXTRACTOR}: the feature extractor in {self._extractor_files.folder} gives {name} at "
            f"{self.rate} Hz with {self.channels} channels, and the model takes {_WAVES} at {rate} Hz with "
            f"{channels}. It is another model's, and the states would be of sound at a wrong speed, or of "
            "none. Name the folder of the model's own."
        )

    @abc.abstractmethod
    def check_config(self) -> None:
        """Raise ConfigError for a model that this encoder does not run as its reference does."""

    @abc.abstractmethod
    def states(self, model: Any, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the model on what the feature extractor gave of one clip; returns [steps, width]."""

    def setting(self, key: str) -> int:
        """Return a number of the model's config. Raises ConfigError if it has none."""
        return number_of(self._files, self._config, key)

    def facts(self) -> Mapping[str, object]:
        """Return the digests of the files, and transformers' version."""
        return {
            "weights_sha256": self._files.weights_sha256(),
            "config_sha256": self._files.config_sha256(),
            "extractor": {
                "class": type(self.extractor).__name__,
                "sha256": self._extractor_files.files_sha256(),
            },
            "packages": versions(),
        }

    def load_weights(self, device: torch.device) -> Any:
        """Load the model by transformers."""
        return load_model(self._files, self.class_name, dtype=self.dtype, device=device)

    def states_of(self, model: Any, samples_NC: torch.Tensor) -> torch.Tensor:
        """Run the model on what the feature extractor makes of the samples, in the model's dtype."""
        planes = samples_NC.float().cpu().numpy().T
        sound = planes[0] if self.channels == 1 else planes
        values = self.extractor(sound, sampling_rate=self.rate, return_tensors="pt")
        inputs = {
            name: value.to(model.device, self.dtype if value.is_floating_point() else None)
            for name, value in values.items()
        }
        return self.states(model, inputs)
