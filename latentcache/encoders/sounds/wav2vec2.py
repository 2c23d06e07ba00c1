"""wav2vec 2.0 (Wan S2V, talking heads): states of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.encoders.sounds.encoder import Encoder as Base
from latentcache.encoders.sounds.encoder import SoundSettings
from latentcache.errors import ConfigError


class Settings(SoundSettings):
    """`layer`: which states."""

    family: Literal["wav2vec2"]
    layer: int | Literal["last_hidden_state"] = Field(
        default="last_hidden_state", description="Or an index of hidden_states, such as -2."
    )


class Encoder(Base[Settings]):
    """States [steps, hidden_size], 50 per second of the published models."""

    classes = ("Wav2Vec2Model",)
    source = "transformers Wav2Vec2Model"
    unused = ("masked_spec_embed",)  # it is SpecAugment's, in training; wav2vec2-base-960h lacks it

    def check_config(self) -> None:
        """Refuse models with an adapter, which have other steps, and layers that are not there."""
        if getattr(self._config, "add_adapter", False):
            raise ConfigError("wav2vec2: models with an adapter are not known to this encoder")
        most = self.setting("num_hidden_layers")
        layer = self.settings.layer
        if isinstance(layer, int) and not -most - 1 <= layer <= most:
            raise ConfigError(f"layer: {layer}, and the model has hidden_states 0 to {most}")

    def num_steps(self, num_samples: int) -> int:
        """Return what is left of them after the convolutions."""
        kernels, strides = self._config.conv_kernel, self._config.conv_stride
        for kernel, stride in zip(kernels, strides, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def width(self) -> int:
        """Return the hidden size."""
        return self.setting("hidden_size")

    def states(self, model: Any, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the layer's states."""
        layer = self.settings.layer
        if isinstance(layer, str):
            found: torch.Tensor = model(**values).last_hidden_state[0]
            return found
        hidden: torch.Tensor = model(**values, output_hidden_states=True).hidden_states[layer][0]
        return hidden

    def facts(self) -> Mapping[str, object]:
        """Return the layer, too."""
        return {**super().facts(), "layer": self.settings.layer}
