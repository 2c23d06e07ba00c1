"""Wan 2.1 image to video: CLIP ViT-H/14 after its last block but one, without the final norm."""

from __future__ import annotations

from typing import Any, Literal

import torch

from latentcache.encoders.towers.tower import Tower, TowerSettings


class Settings(TowerSettings):
    """`frames`: first for I2V, first_last for FLF2V."""

    family: Literal["wan_clip"]


class Encoder(Tower[Settings]):
    """States [257, 1280], the class token's first; [514, 1280] of two frames."""

    classes = ("CLIPVisionModel",)
    processor_name = "image_processor"
    source = "diffusers WanImageToVideoPipeline"
    facts = {"layer": -2}  # noqa: RUF012 - constant

    def num_rows(self) -> int:
        """Return the number of patches and the class token."""
        return self.num_patches + 1

    def states(self, model: Any, values: Any) -> torch.Tensor:
        """Return the layer before the last."""
        states: torch.Tensor = model(**values, output_hidden_states=True).hidden_states[-2]
        return states
