"""LTX-2: all layers of Gemma 3, reduced by the checkpoint's feature extractor, before its connectors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from latentcache.config.base import Positive
from latentcache.encoders.pretrained.projection import Projection
from latentcache.encoders.text.cleaning import Cleaning
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import TextPart, Tokens, own_rows
from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.encoders.text.settings import TextSettings

#: Numbers of diffusers' connectors.
_SCALE, _EPSILON = 8, 1e-6


class Settings(TextSettings):
    """The feature extractor is the first layer of the component `connectors`."""

    family: Literal["ltx2"]
    length: Positive = Field(default=1024, description="Tokens, padded on the left.")


class Encoder(Family[Settings]):
    """States [n, 3840], which video and audio share in LTX-2; LTX-2.3 has `audio` besides."""

    source = "diffusers LTX2Pipeline and LTX2TextConnectors; LTX-2 ltx-trainer process_captions.py"
    cleaning: Cleaning = "strip"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        checkpoint = settings.checkpoint()
        self.gemma = TextPart(
            checkpoint,
            "text_encoder",
            "tokenizer",
            classes=("Gemma3ForConditionalGeneration",),
            special=("bos",),
            side=None,  # the reference sets it, as the next lines do
        )
        self.gemma.tokenizer.padding_side = "left"
        if self.gemma.tokenizer.pad_token is None:
            self.gemma.tokenizer.pad_token = self.gemma.tokenizer.eos_token
        self.connectors = checkpoint.component("connectors")
        config = self.connectors.config()
        self.by_modality = bool(config.get("per_modality_projections", False))
        names = {"states": "video_text_proj_in", "audio": "audio_text_proj_in"}
        if not self.by_modality:
            names = {"states": "text_proj_in"}
        self.projections = {
            array: Projection(self.connectors, name) for array, name in names.items()
        }
        self.parts = (self.gemma,)
        self.arrays = {
            name: TextArray((settings.length, projection.width), padding="mask", side="left")
            for name, projection in self.projections.items()
        }
        self.facts = {
            "length": settings.length,
            "mask": True,
            "layers": "all",
            "feature_extractor": {
                "per_modality": self.by_modality,
                "sha256": {
                    name: projection.sha256() for name, projection in self.projections.items()
                },
            },
        }

    def load(self, device: torch.device) -> Encoder:
        """Load Gemma and the feature extractor."""
        for projection in self.projections.values():
            projection.load(self.dtype, device)
        return super().load(device)

    def states(self, text: str) -> EncodedText:
        """Encode with the mask, norm and join all layers, and project them."""
        tokens = self.gemma.tokens(text, length=self.settings.length)
        layers = self.gemma.run(tokens, mask=tokens.mask, layers=True).hidden_states
        states = torch.stack(layers, dim=-1)
        arrays = {
            name: own_rows(projection(self._normed(states, tokens, projection.width)), tokens)
            for name, projection in self.projections.items()
        }
        return EncodedText(arrays, tokens.num_own, tokens.lost)

    def _normed(self, states: torch.Tensor, tokens: Tokens, width: int) -> torch.Tensor:
        mask = tokens.mask.to(states.device).bool()
        if not self.by_modality:
            return masked_range_norm(states, mask)
        return token_norm(states, mask) * math.sqrt(width / states.shape[2])


def masked_range_norm(states_BLDK: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Norm each layer by its mean and range over the text (LTX-2.0); zeros past it.

    Returns [B, L, D * K] in the dtype of the states.
    """
    mask = mask_BL[:, :, None, None]
    hidden = states_BLDK.shape[2]
    count = (mask_BL.sum(dim=-1) * hidden).view(-1, 1, 1, 1)
    mean = states_BLDK.masked_fill(~mask, 0.0).sum(dim=(1, 2), keepdim=True) / (count + _EPSILON)
    low = states_BLDK.masked_fill(~mask, float("inf")).amin(dim=(1, 2), keepdim=True)
    high = states_BLDK.masked_fill(~mask, float("-inf")).amax(dim=(1, 2), keepdim=True)
    normed = (states_BLDK - mean) / (high - low + _EPSILON) * _SCALE
    return normed.masked_fill(~mask, 0.0).flatten(2).to(states_BLDK.dtype)


def token_norm(states_BLDK: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Norm each token's layers to a mean square of 1 (LTX-2.3); zeros past the text: [B, L, D * K]."""
    variance = torch.mean(states_BLDK**2, dim=2, keepdim=True)
    normed = (states_BLDK * torch.rsqrt(variance + _EPSILON)).flatten(2)
    return torch.where(mask_BL[..., None], normed, torch.zeros_like(normed))
