"""What the video autoencoders of diffusers do, one record a class, read from their code.

A further class of the `encode(x).latent_dist` kind is one more record in `VIDEO_CLASSES`, and a
tiny model of it in the contract suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from latentcache.errors import ConfigError
from latentcache.records import Exactness, FrameRule, Normaliser

#: Reads a key of the model's config.json, or the class's default where the file lacks it.
Settings = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True)
class VideoClass:
    """One autoencoder class of diffusers that maps pixels [B, 3, T, H, W] to a posterior.

    channels, stride, normaliser: of a model, from its settings. attributes: what steers hidden
    chunking and tiling, set on the model one by one so that no version's default decides; they are
    part of the recipe. reset: the method that clears state kept on the module, where it keeps any.
    """

    name: str
    frame_rule: FrameRule
    exactness: Exactness
    channels: Callable[[Settings], int]
    stride: Callable[[Settings], tuple[int, int, int]]
    normaliser: Callable[[Settings], Normaliser]
    attributes: Mapping[str, bool | int] = field(
        default_factory=lambda: {"use_tiling": False, "use_slicing": False}
    )
    reset: str | None = None
    pixel_range: tuple[float, float] = (-1.0, 1.0)


def _wan_stride(settings: Settings) -> tuple[int, int, int]:
    """Count what the layers do: scale_factor_* of the config only describe it."""
    stages = len(settings("dim_mult")) - 1
    temporal = 2 ** sum(settings("temperal_downsample")[:stages])
    if temporal != 4:
        raise ConfigError(
            f"encoder.model: this AutoencoderKLWan reduces time by {temporal}, but the class "
            "encodes frames in groups of 4 whatever its config says, so its latents would be cut "
            "wrongly. Models of Wan 2.1 and 2.2 reduce time by 4."
        )
    spatial = int(2**stages * (settings("patch_size") or 1))
    return (temporal, spatial, spatial)


def _wan_normaliser(settings: Settings) -> Normaliser:
    """Normalise by channel, with the reciprocal rounded to float32 as in the Wan pipelines."""
    mean, std, channels = settings("latents_mean"), settings("latents_std"), settings("z_dim")
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"encoder.model: config.json has {channels} channels (z_dim) but {len(mean)} "
            f"latents_mean and {len(std)} latents_std, so its latents could not be normalised. "
            "Correct config.json."
        )
    scale = (1.0 / torch.tensor(std, dtype=torch.float32)).tolist()
    return Normaliser(kind="channel", shift=tuple(map(float, mean)), scale=tuple(scale))


def _cogvideox_stride(settings: Settings) -> tuple[int, int, int]:
    spatial = 2 ** (len(settings("block_out_channels")) - 1)
    return (int(settings("temporal_compression_ratio")), spatial, spatial)


def _cogvideox_normaliser(settings: Settings) -> Normaliser:
    """Multiply by scaling_factor, with invert_scale_latents or without.

    That flag (CogVideoX 1.5 image-to-video) is about the condition image alone, whose latent is
    divided by the factor; the same pipeline's own latents are video latents times the factor (see
    prepare_latents and decode_latents of diffusers' CogVideoXImageToVideoPipeline).
    """
    return Normaliser(kind="scale", scale=(float(settings("scaling_factor")),))


VIDEO_CLASSES: Mapping[str, VideoClass] = {
    spec.name: spec
    for spec in (
        VideoClass(  # Wan 2.1; Wan 2.2 5B with patch_size 2, is_residual and 48 channels
            name="AutoencoderKLWan",
            frame_rule=FrameRule(multiple=4, remainders=(1,)),
            exactness="prefix_exact",
            channels=lambda settings: int(settings("z_dim")),
            stride=_wan_stride,
            normaliser=_wan_normaliser,
            reset="clear_cache",
        ),
        VideoClass(
            # Frames go in batches of 8, and T % 8 more into the first one. GroupNorm sees a batch,
            # so any T but 1, 8k and 8k+1 would be normalised over batches that training had not;
            # and 8k and 8k+1 are grouped differently: a prefix is exact only from 8k+1 to 8k+1.
            name="AutoencoderKLCogVideoX",
            frame_rule=FrameRule(multiple=8, remainders=(0, 1)),
            exactness="exact",
            channels=lambda settings: int(settings("latent_channels")),
            stride=_cogvideox_stride,
            normaliser=_cogvideox_normaliser,
            attributes={
                "use_tiling": False,
                "use_slicing": False,
                "num_sample_frames_batch_size": 8,
                "num_latent_frames_batch_size": 2,
            },
        ),
    )
}
