"""Stored data types in numpy and in torch, by the name that cache.json and Zarr use."""

from __future__ import annotations

from typing import Any, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
#: Integer dtypes through which tensors share memory with numpy, by item size: numpy has no bfloat16.
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype; bfloat16 comes from ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype."""
    return cast(torch.dtype, getattr(torch, name))


def as_numpy(tensor: torch.Tensor) -> Array:
    """Return a contiguous CPU tensor, bfloat16 included, as a numpy array that shares its memory."""
    name = str(tensor.dtype).removeprefix("torch.")
    carrier: Array = tensor.view(_CARRIERS[tensor.element_size()]).numpy()
    return carrier.view(numpy_dtype(name))
