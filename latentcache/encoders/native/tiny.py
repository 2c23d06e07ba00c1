"""What the tiny autoencoders share: kinds `taesd` (pictures, by frame) and `taehv` (video).

Their latents are those that the trainers of the large models see, already normalised; they have no
posterior. Which large model's latents a checkpoint gives is told by its name alone: the tensors of
several fit one another, so the variant is never taken from them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch

from latentcache.errors import ConfigError, did_you_mean

Dtype = Literal["float32", "float16", "bfloat16"]


def choose_variant(
    configured: str | None, path: Path, known: Collection[str], *, suffix: str = ""
) -> str:
    """Return the variant that the config or the file's name tells: `<variant><suffix>.pth`.

    Raises ConfigError where neither tells one, where they differ, or where it is unknown.
    """
    listed = f"Variants: {', '.join(known)}."
    if configured is not None and configured not in known:
        raise ConfigError(
            f"encoder.variant: unknown variant {configured!r}.{did_you_mean(configured, known)} {listed}"
        )
    stem = path.name.partition(".")[0]
    named = stem.removesuffix(suffix) if stem.endswith(suffix) else ""
    if configured is None and named not in known:
        raise ConfigError(
            f"encoder.variant: the name {path.name} tells none, and the tensors of different variants "
            f"can fit one another. Set encoder.variant, or give the file its published name. {listed}"
        )
    if configured is not None and named in known and named != configured:
        raise ConfigError(
            f"encoder.variant is {configured!r}, and the file is by its name {path.name} of {named!r}: "
            "the latents would be taken for another model's. Correct one of them."
        )
    return configured or named


def unit_levels(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return what the models are fed for each of the 256 levels: x / 255 in float32, then `dtype`."""
    return (torch.arange(256, dtype=torch.float32) / 255).to(device, dtype)
