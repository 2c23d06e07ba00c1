"""What diffusers' KVAE does to inputs past 3 GB, and why they are refused."""

from __future__ import annotations

from typing import Any

import torch

from latentcache.errors import GeometryError

#: Bytes of a layer's input at which KVAESafeConv3d starts to split it in time.
SPLIT_BYTES = 3 * 10**9


def refuse_misaligned_splits(vae: Any) -> None:
    """Make the model raise GeometryError if a convolution of stride 2 in time would be split.

    Each piece begins with the two frames kept from the piece before. After a piece of odd length that
    is one frame too early, and the latents would silently be of shifted frames.
    """
    for module in vae.encoder.modules():
        if isinstance(module, torch.nn.Conv3d) and module.stride[0] > 1:
            module.register_forward_pre_hook(_refuse)


def _refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ARG001
    size = inputs[0].numel() * inputs[0].element_size()
    if size > SPLIT_BYTES:
        raise GeometryError(
            f"AutoencoderKLKVAEVideo would split a layer's input of {size / 1e9:.1f} GB at the wrong "
            "frame, and its latents would be of shifted frames. Use a smaller clips.size, or "
            "encoder.dtype: bfloat16, which halves it."
        )
