"""How a network's kernels are chosen: memory format, compilation, TF32. All of them change last bits.

So they are choices of the recipe. The defaults are those with which latents equal the model's own call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from latentcache.errors import ConfigError, EncoderError

MemoryFormat = Literal["contiguous", "channels_last"]
#: Graphs that a compiled encoder may have: a few for each bucket and batch. Beyond it torch would run the
#: network uncompiled without a word, and bits would depend on what came before.
MAX_GRAPHS = 1024


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What a recipe says of kernels, with nothing left to choose."""

    memory_format: MemoryFormat = "contiguous"
    compile: bool = False
    tf32: bool = False

    def identity(self) -> Mapping[str, Any]:
        """Return what the recipe says of them: only what is not plain, so that plain recipes stay."""
        return {name: value for name, value in vars(self).items() if value != getattr(PLAIN, name)}


PLAIN = Kernels()


def choose(
    memory_format: MemoryFormat | Literal["auto"], *, compiled: bool, tf32: bool, dtype: str
) -> Kernels:
    """Return the kernels that a configuration asks for. It must not depend on the machine.

    auto: channels_last for 16-bit dtypes. On a CPU it makes bfloat16 convolutions 1.3 to 3.4 times as fast,
    and those of float32 slower. Raises ConfigError if TF32 is asked for where nothing is in float32.
    """
    if tf32 and dtype != "float32":
        raise ConfigError(
            f"encoder.tf32: it makes float32 less exact, and encoder.dtype is {dtype}. Remove "
            "encoder.tf32, or set encoder.dtype: float32."
        )
    if memory_format == "auto":
        memory_format = "contiguous" if dtype == "float32" else "channels_last"
    return Kernels(memory_format=memory_format, compile=compiled, tf32=tf32)


def lay_out(network: nn.Module, memory_format: MemoryFormat) -> None:
    """Store the weights of convolutions in a memory format; their values stay."""
    for parameter in network.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = laid_out(parameter.data, memory_format)


def laid_out(values: torch.Tensor, memory_format: MemoryFormat) -> torch.Tensor:
    """Return 4-D or 5-D values in a memory format; the same tensor if it is in it."""
    if memory_format == "contiguous":
        return values.contiguous()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return values.contiguous(memory_format=formats[values.ndim])


def is_channels_last(values_BCTHW: torch.Tensor) -> bool:
    """Tell whether a clip's channels, and not its columns, are next to each other in memory."""
    last = values_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)
    return last and not values_BCTHW.is_contiguous()


def compile_encoder(vae: Any, name: str) -> None:
    """Have torch.compile run the encoder of an autoencoder, by shape. Raises EncoderError."""
    encoder = getattr(vae, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise EncoderError(
            f"{name} has no network `encoder` to compile. Set encoder.compile: false."
        )
    encoder.compile(dynamic=False)


@contextlib.contextmanager
def compiled(name: str) -> Iterator[None]:
    """Run compiled networks so that bits depend on shapes, not on which shape came first.

    Raises EncoderError where torch cannot compile.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    limits = {
        "recompile_limit": MAX_GRAPHS,
        "accumulated_recompile_limit": MAX_GRAPHS,
        "fail_on_recompile_limit_hit": True,
    }
    try:
        with config.patch(limits):
            yield
    except TorchDynamoException as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderError(
            f"{name} cannot be compiled: {first[:300]} torch.compile needs a C++ compiler on a CPU, and "
            "Triton on a GPU. Set encoder.compile: false, which is another recipe."
        ) from error


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled networks as they were written."""
    with torch.compiler.set_stance("force_eager"):
        yield
