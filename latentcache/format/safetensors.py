"""Tensors as a safetensors file.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentcache.core.dtypes import as_numpy
from latentcache.core.json_text import OTHER_HEADER, fault_of, parse_json

#: Data types by their names in a file.
DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "I32": "int32",
    "I64": "int64",
    "F64": "float64",
    "BOOL": "bool",
}
_CODES = {name: code for code, name in DTYPES.items()}
#: Of a file that is read here, which names a few tensors.
MAX_HEADER_BYTES = 1 << 20


def safetensors_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file: the header's length, the header in JSON, the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, offset = [], 0
    for name, tensor in tensors.items():
        data = as_numpy(tensor.contiguous()).tobytes()
        header[name] = {
            "dtype": _CODES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def read_float32(data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that holds only float32 ones. Raises ValueError.

    No place and no shape in it is believed: tensors that share bytes would take more memory than the file.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header would have {length} bytes")
        header = parse_json(data[8 : 8 + length])
        header.pop("__metadata__", None)
        values = memoryview(data)[8 + length :]
        places = {name: _place(entry, len(values)) for name, entry in header.items()}
    except OTHER_HEADER as error:
        raise ValueError(f"its header is not that of tensors: {fault_of(error)}") from None
    if sum(last - first for first, last, _ in places.values()) > len(values):
        raise ValueError("its tensors share bytes")
    return {
        name: torch.from_numpy(np.frombuffer(values[first:last], "<f4").copy()).reshape(shape)
        for name, (first, last, shape) in places.items()
    }


def _place(entry: Mapping[str, Any], num_bytes: int) -> tuple[int, int, tuple[int, ...]]:
    """Return where a float32 tensor begins and ends, and its shape."""
    (first, last), shape = entry["data_offsets"], tuple(entry["shape"])
    if {type(n) for n in (first, last, *shape)} != {int} or min((0, *shape)) < 0:
        raise ValueError("its places and shapes are not numbers of bytes and values")
    if entry["dtype"] != "F32" or not 0 <= first <= last <= num_bytes:
        raise ValueError("a tensor of it is not float32, or not all there")
    if last - first != 4 * math.prod(shape) or max((0, *shape)) > num_bytes:
        raise ValueError("a tensor's bytes are not those of its shape")
    return first, last, shape
