"""Small diffusers autoencoders with random weights, saved to a folder as the hub has them.

Their geometry is that of the published models, and their channels are as few as the layers allow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_WAN: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
_BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
_VIDTOK: dict[str, Any] = {
    "ch": 32,  # its GroupNorm has 32 groups
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "z_channels": 4,
}
_IMAGE: dict[str, Any] = {
    **_BLOCKS,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

#: By name: the class and its settings, where they differ from the class's defaults.
TINY: Mapping[str, tuple[str, dict[str, Any]]] = {
    "wan": ("AutoencoderKLWan", _WAN),
    "wan22": (
        "AutoencoderKLWan",
        {
            **_WAN,
            "decoder_base_dim": 8,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": [0.01 * i - 0.2 for i in range(48)],
            "latents_std": [0.5 + 0.01 * i for i in range(48)],
        },
    ),
    "qwenimage": ("AutoencoderKLQwenImage", _WAN),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            **_BLOCKS,
            "latent_channels": 16,
            "sample_height": 32,  # where tiling would begin, were it on
            "sample_width": 32,
        },
    ),
    "hunyuan": ("AutoencoderKLHunyuanVideo", _BLOCKS),
    "hunyuan15": (
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": (8, 8, 8, 16, 16), "layers_per_block": 1, "latent_channels": 4},
    ),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "latent_channels": 8,
        },
    ),
    "ltx095": (  # LTX-Video 0.9.5 and later: blocks that reduce space or time, timestep, noise
        "AutoencoderKLLTXVideo",
        {
            "block_out_channels": (8, 8, 8, 8, 8),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "spatio_temporal_scaling": (True, True, True, True),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_block_out_channels": (8, 16, 32),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "decoder_spatio_temporal_scaling": (True, True, True),
            "decoder_inject_noise": (True, False, False, False),
            "upsample_residual": (True, True, True),
            "upsample_factor": (2, 2, 2),
            "timestep_conditioning": True,
            "latent_channels": 8,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
    ),
    "ltx2": (
        "AutoencoderKLLTX2Video",
        {
            "block_out_channels": (8, 16, 32, 64),
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "latent_channels": 8,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": (32, 32, 32, 32),  # attention's heads have 32 channels
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
        },
    ),
    "allegro": (
        "AutoencoderKLAllegro",
        # Tiles of 24x128x128 that begin every 16x8x48: more than the overlaps of 120 and 80 pixels.
        {**_BLOCKS, "block_out_channels": (2, 2, 2, 4), "sample_size": 128},
    ),
    "magvit": ("AutoencoderKLMagvit", _BLOCKS),
    "cosmos": (
        "AutoencoderKLCosmos",
        {
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "num_layers": 1,
            "attention_resolutions": (8,),
            "resolution": 64,
        },
    ),
    "kvae": ("AutoencoderKLKVAEVideo", {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}),
    "svd": (
        "AutoencoderKLTemporalDecoder",
        {
            "block_out_channels": (32, 32, 32, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
        },
    ),
    "vidtok": ("AutoencoderVidTok", _VIDTOK),
    "vidtok_fsq": (
        "AutoencoderVidTok",
        {**_VIDTOK, "double_z": False, "regularizer": "fsq", "codebook_size": 8**4},
    ),
    "vidtok_noncausal": ("AutoencoderVidTok", {**_VIDTOK, "is_causal": False}),
    "kl": ("AutoencoderKL", {**_IMAGE, "latent_channels": 4}),
    "flux": (
        "AutoencoderKL",
        {
            **_IMAGE,
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
    ),
    "flux2": ("AutoencoderKLFlux2", _IMAGE),
    "dc": (
        "AutoencoderDC",
        {
            "latent_channels": 8,
            "attention_head_dim": 2,
            "encoder_block_out_channels": (8, 8, 8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8, 8, 8),
            "encoder_layers_per_block": (1, 1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1, 1),
            "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
            "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
            "scaling_factor": 0.41407,
        },
    ),
    "tiny": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
        },
    ),
    "vq": (
        "VQModel",
        {**_IMAGE, "latent_channels": 4, "num_vq_embeddings": 300},
    ),
    "movq": (  # Kandinsky 2's
        "VQModel",
        {
            **_IMAGE,
            "latent_channels": 4,
            "num_vq_embeddings": 300,
            "norm_type": "spatial",
            "block_out_channels": (32, 32, 32, 32),  # spatial norm has 32 groups
            "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        },
    ),
}


def save(name: str, folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save the model `name` of `TINY` and return its folder.

    Buffers that the latents are normalised with and LTX's noise get values, and codes are spread as
    latents are: as made, they are zeros and ones, and so near zero that one code is nearest to all.
    """
    import diffusers

    class_name, settings = TINY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = getattr(diffusers, class_name)(**{**settings, **changes})
        vae.requires_grad_(False)
        for key, buffer in vae.named_buffers():
            if key in ("latents_mean", "bn.running_mean"):
                buffer.copy_(torch.randn(buffer.shape) / 10)
            elif key in ("latents_std", "bn.running_var"):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
        for key, parameter in vae.named_parameters():
            if "per_channel_scale" in key:  # of the noise in LTX's decoder
                parameter.fill_(2.0)
        if class_name == "VQModel":
            torch.nn.init.normal_(vae.quantize.embedding.weight, std=0.3)
        elif settings.get("regularizer") == "fsq":
            vae.encoder.conv_out.conv.weight.mul_(20)
    vae.save_pretrained(str(folder))
    return Path(folder)


def saver(name: str) -> Callable[..., Path]:
    """Return `save` for one model."""
    return functools.partial(save, name)


save_wan = saver("wan")
save_wan22 = saver("wan22")
save_cogvideox = saver("cogvideox")
