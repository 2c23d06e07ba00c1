"""What the trainer learns: a small diffusers transformer under captions, by flow matching.

Axes: B batch, C channels, t h w of the latent.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from latentcache.core.machine import install_command
from latentcache.core.posterior import sample_seed
from latentcache.errors import ConfigError

#: Entries of the table that words are hashed into.
NUM_WORDS = 4096
#: Channels of an attention head, divided among the rotary embeddings of t, h and w.
HEAD_CHANNELS = 24


class FlowModel(nn.Module):
    """The velocity of noisy latents under captions: Wan's transformer and a bag of words."""

    def __init__(self, *, channels: int, patch: int, num_heads: int, depth: int) -> None:
        super().__init__()
        width = num_heads * HEAD_CHANNELS
        self.words = nn.Linear(NUM_WORDS, width, bias=False)
        self.transformer = _transformer_class()(
            patch_size=(1, patch, patch),
            num_attention_heads=num_heads,
            attention_head_dim=HEAD_CHANNELS,
            in_channels=channels,
            out_channels=channels,
            text_dim=width,
            ffn_dim=4 * width,
            num_layers=depth,
        )

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, captions: Sequence[str]
    ) -> torch.Tensor:
        """Return the velocity, float32 [B, C, t, h, w] as `noisy`; times: [B] from 0 to 1."""
        text = self.words(bags_of_words(captions).to(noisy.device))[:, None]
        velocity: torch.Tensor = self.transformer(noisy, 1000 * times, text, return_dict=False)[0]
        return velocity


def _transformer_class() -> type[nn.Module]:
    try:
        from diffusers import WanTransformer3DModel
    except ImportError as error:
        raise ConfigError(
            f"the trainer's model is one of diffusers, which cannot be imported ({error}). "
            f"Run: {install_command('diffusers')}"
        ) from None
    return WanTransformer3DModel  # type: ignore[no-any-return]


def bags_of_words(captions: Sequence[str]) -> torch.Tensor:
    """Return the share of each hashed word in each caption, float32 [B, NUM_WORDS]; 0 for "".

    A dense product with it is deterministic on all devices, which an embedding's gradient is not.
    """
    bags = torch.zeros(len(captions), NUM_WORDS)
    for bag, caption in zip(bags, captions, strict=True):
        words = caption.lower().split()
        for word in words:
            bag[zlib.crc32(word.encode()) % NUM_WORDS] += 1 / len(words)
    return bags


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What is random in one step of one rank.

    noise: float32 [B, C, t, h, w]; times: float32 [B], logit-normal in 0 to 1, as in Esser et al.,
    2024 (arXiv 2403.03206); dropped: bool [B], whose captions are left out.
    """

    noise: torch.Tensor
    times: torch.Tensor
    dropped: torch.Tensor


def draw(shape: Sequence[int], *, caption_dropout: float, seed: int, step: int, rank: int) -> Draws:
    """Draw on the CPU, as a function only of the arguments: no generator lives from step to step."""
    generator = torch.Generator().manual_seed(sample_seed("train", seed, step, rank))
    return Draws(
        noise=torch.randn(tuple(shape), generator=generator),
        times=torch.randn(shape[0], generator=generator).sigmoid(),
        dropped=torch.rand(shape[0], generator=generator) < caption_dropout,
    )


def flow_loss(
    model: nn.Module, latents: torch.Tensor, captions: Sequence[str | None], draws: Draws
) -> torch.Tensor:
    """Return the loss of a rectified flow, Liu et al., 2022 (arXiv 2209.03003), a scalar.

    latents: float32 [B, C, t, h, w]. The path is (1 - time) * latents + time * noise, and its
    velocity noise - latents.
    """
    noise, times = draws.noise.to(latents.device), draws.times.to(latents.device)
    time = times[:, None, None, None, None]
    kept = [
        "" if dropped else caption or ""
        for caption, dropped in zip(captions, draws.dropped.tolist(), strict=True)
    ]
    velocity = model((1 - time) * latents + time * noise, times, kept)
    return nn.functional.mse_loss(velocity, noise - latents)
