"""Small diffusers autoencoders with random weights, saved to a folder as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_wan(folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a tiny AutoencoderKLWan of Wan 2.1's geometry: 16 channels, stride 4x8x8, T = 1 + 4k."""
    settings = {
        "base_dim": 8,
        "z_dim": 16,
        "dim_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    return _save("AutoencoderKLWan", folder, seed, {**settings, **changes})


def save_wan22(folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a tiny AutoencoderKLWan of Wan 2.2 5B's geometry: 48 channels, stride 4x16x16."""
    settings = {
        "decoder_base_dim": 8,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.01 * i - 0.2 for i in range(48)],
        "latents_std": [0.5 + 0.01 * i for i in range(48)],
    }
    return save_wan(folder, seed=seed, **{**settings, **changes})


def save_cogvideox(folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a tiny AutoencoderKLCogVideoX: 16 channels, stride 4x8x8, T = 1, 8k or 8k + 1."""
    settings = {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 16,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_height": 32,  # where tiling would begin, were it on
        "sample_width": 32,
    }
    return _save("AutoencoderKLCogVideoX", folder, seed, {**settings, **changes})


def _save(class_name: str, folder: str | Path, seed: int, settings: dict[str, Any]) -> Path:
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = getattr(diffusers, class_name)(**settings)
    vae.save_pretrained(str(folder))
    return Path(folder)
