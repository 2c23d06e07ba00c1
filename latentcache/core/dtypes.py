"""Stored data types in numpy and in torch, by the name that cache.json and Zarr use."""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from latentcache.errors import ConfigError, did_you_mean

Array = npt.NDArray[Any]
#: Integer dtypes through which tensors share memory with numpy, by item size: numpy has no bfloat16.
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: What may name a data type: torch.bfloat16, "bfloat16", np.float32, ml_dtypes.bfloat16.
AnyDtype: TypeAlias = "torch.dtype | str | npt.DTypeLike"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype; bfloat16 comes from ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype."""
    return cast(torch.dtype, getattr(torch, name))


def resolve_dtype(asked: AnyDtype, *, integers: bool = False) -> torch.dtype:
    """Return the torch dtype that is asked for in any way. Raises ConfigError.

    integers: whether it is for ids; latents are never rounded to integers, nor ids to fractions.
    """
    name = str(asked).removeprefix("torch.")
    if not isinstance(asked, torch.dtype | str):
        with contextlib.suppress(TypeError, ValueError):  # of what numpy does not know
            name = np.dtype(asked).name
    dtype = getattr(torch, name, None)
    kind = "integers" if integers else "floating point numbers"
    if (
        isinstance(dtype, torch.dtype)
        and dtype.is_floating_point != integers
        and dtype != torch.bool
    ):
        return dtype
    known = {n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype)}
    raise ConfigError(
        f"dtype {asked!r} is no type of {kind}.{'' if name in known else did_you_mean(name, known)} "
        f"Give one of torch, or its name, such as {'int32' if integers else 'bfloat16 or float32'}."
    )


def as_numpy(tensor: torch.Tensor) -> Array:
    """Return a contiguous CPU tensor as a numpy array that shares its memory; bfloat16 by ml_dtypes."""
    name = str(tensor.dtype).removeprefix("torch.")
    carrier: Array = tensor.view(_CARRIERS[tensor.element_size()]).numpy()
    return carrier.view(numpy_dtype(name))
