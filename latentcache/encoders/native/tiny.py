"""What the tiny autoencoders share: kinds `taesd` (pictures, by frame) and `taehv` (video).

Their latents are those that the trainers of the large models see, already normalised; they have no
posterior. Only a checkpoint's name tells which large model's latents it gives. The tensors of several
variants have the same shapes, so the variant is never taken from them.
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
    """Return the variant that the config or the file's name says: `<variant><suffix>.pth`.

    Raises ConfigError if neither names one, if they differ, or if it is unknown.
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
            f"encoder.variant: the file name {path.name} names none, and the tensors of different variants "
            f"can fit one another. Set encoder.variant, or give the file its published name. {listed}"
        )
    if configured is not None and named in known and named != configured:
        raise ConfigError(
            f"encoder.variant is {configured!r}, but the file is by its name {path.name} of {named!r}: "
            "the latents would be taken for another model's. Correct one of them."
        )
    return configured or named


def unit_levels(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the models' input for each of the 256 levels: x / 255 in float32, then `dtype`."""
    return (torch.arange(256, dtype=torch.float32) / 255).to(device, dtype)
