"""EnCodec: ids of residual codebooks, for models that predict sound as tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.encoders.sounds.encoder import Encoder as Base
from latentcache.encoders.sounds.encoder import SoundSettings
from latentcache.errors import ConfigError


class Settings(SoundSettings):
    """`bandwidth`: how many codebooks."""

    family: Literal["encodec"]
    bandwidth: float = Field(
        description="Of the model's target_bandwidths, in kbit/s: 6.0 is 8 codebooks at 24 kHz."
    )


class Encoder(Base[Settings]):
    """Ids [steps, codebooks], 75 per second at 24 kHz."""

    classes = ("EncodecModel",)
    source = "transformers EncodecModel.encode"

    def check_config(self) -> None:
        """Refuse models that cut sound into chunks with scales of their own, and other bandwidths."""
        if self._config.chunk_length_s is not None:
            raise ConfigError(
                "encodec: this model encodes overlapping chunks of "
                f"{self._config.chunk_length_s} s, each with a scale beside its ids, so its ids are no "
                "one row of steps. Use the model of 24 kHz."
            )
        known = [float(one) for one in self._config.target_bandwidths]
        if self.settings.bandwidth not in known:
            raise ConfigError(
                f"bandwidth: {self.settings.bandwidth}; this model has {', '.join(map(str, known))}"
            )

    def num_steps(self, num_samples: int) -> int:
        """Return the steps, the last of which may be of fewer samples."""
        return math.ceil(num_samples / int(math.prod(self._config.upsampling_ratios)))

    def width(self) -> int:
        """Return the number of codebooks, as the model's own quantiser counts them."""
        per_codebook = math.log2(self.setting("codebook_size")) * int(self._config.frame_rate)
        return max(1, math.floor(self.settings.bandwidth * 1000 / per_codebook))

    def stored_dtype(self) -> str:
        """Return a dtype for ids."""
        return "uint16" if self.setting("codebook_size") <= 1 << 16 else "uint32"

    def states(self, model: Any, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the ids of the only chunk."""
        encoded = model.encode(**values, bandwidth=self.settings.bandwidth)
        codes: torch.Tensor = encoded.audio_codes[0, 0].T
        return codes

    def facts(self) -> Mapping[str, object]:
        """Return the bandwidth, too."""
        return {**super().facts(), "bandwidth": self.settings.bandwidth}
