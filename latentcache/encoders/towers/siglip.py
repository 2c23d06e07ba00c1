"""HunyuanVideo 1.5 image to video and FramePack: SigLIP's last states."""

from __future__ import annotations

from typing import Any, Literal

import torch

from latentcache.encoders.towers.tower import Tower, TowerSettings


class Settings(TowerSettings):
    """Its pipelines encode one frame."""

    family: Literal["siglip"]
    frames: Literal["first"] = "first"


class Encoder(Tower[Settings]):
    """States [729, 1152] of the patches, after the final norm."""

    classes = ("SiglipVisionModel",)
    processor_name = "feature_extractor"
    source = "diffusers HunyuanVideo15ImageToVideoPipeline and HunyuanVideoFramepackPipeline"
    facts = {"layer": "last_hidden_state"}  # noqa: RUF012 - constant

    def num_rows(self) -> int:
        """Return the number of patches."""
        return self.num_patches

    def states(self, model: Any, values: Any) -> torch.Tensor:
        """Return the last states."""
        states: torch.Tensor = model(**values.to(dtype=self.dtype)).last_hidden_state
        return states
