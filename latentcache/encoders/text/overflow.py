"""T5 in float16 overflows, and transformers clamps what overflowed: finite, and wrong."""

from __future__ import annotations

from typing import Any

import torch

from latentcache.errors import ClipError

#: Parts of a block. Their outputs are clamped by the block, after these hooks have seen them.
_CLAMPED = frozenset({"T5LayerFF", "T5LayerSelfAttention", "UMT5LayerFF", "UMT5LayerSelfAttention"})


def watch_overflow(model: Any) -> None:
    """Make a T5 in float16 raise ClipError("non_finite") where transformers would clamp."""
    if model.dtype != torch.float16:
        return
    for module in model.modules():
        if type(module).__name__ in _CLAMPED:
            module.register_forward_hook(_refuse_infinity)


def _refuse_infinity(module: Any, arguments: Any, output: Any) -> None:  # noqa: ARG001 - torch's order
    states = output[0] if isinstance(output, tuple) else output
    if not bool(states.isfinite().all()):
        raise ClipError(
            "non_finite",
            "T5 overflows in float16 on this text. Compute in bfloat16 or float32: set dtype.",
        )
