"""Arrays in files: .npy, .safetensors and .json, read without trusting what they say of themselves. No I/O.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.fields import FieldArray
from latentcache.core.json_text import OTHER_HEADER, fault_of, parse_json
from latentcache.errors import ClipError
from latentcache.format.safetensors import DTYPES
from latentcache.storage.urls import suffix_of

#: Headers of files are read up to this.
MAX_HEADER_BYTES = 16 << 20


def parse_array(data: bytes, name: str, tensor: str | None) -> Array:
    """Return the array in a file's bytes. name: tells the format; tensor: which one, of several.

    Raises ClipError.
    """
    suffix = suffix_of(name).lower().lstrip(".")
    if suffix not in PARSERS:
        raise ClipError(
            "unreadable", f"{name} is none of {', '.join(f'.{known}' for known in PARSERS)}"
        )
    try:
        return PARSERS[suffix](data, tensor)
    except OTHER_HEADER as error:
        raise ClipError(
            "unreadable", f"{name} is no whole .{suffix} file: {fault_of(error)}"
        ) from error


def to_field(array: Array, field: FieldArray) -> Array:
    """Return an array as a field stores it. Raises ClipError where it does not fit."""
    shape, wanted = array.shape, field.shape
    fits = len(shape) == len(wanted) and shape[1:] == wanted[1:]
    if not fits or not (shape[0] == wanted[0] or (field.ragged and shape[0] < wanted[0])):
        rule = " at the most" if field.ragged else ""
        raise ClipError(
            "other_array", f"it is {list(shape)}, and the field's are {list(wanted)}{rule}"
        )
    if array.dtype.kind not in "biuf" and array.dtype != numpy_dtype("bfloat16"):
        raise ClipError("other_array", f"it is of {array.dtype}, which are no plain numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(array.astype(numpy_dtype(field.dtype)))
    if field.dtype.startswith("uint"):
        if not np.array_equal(stored, array):
            raise ClipError("other_array", f"it has numbers that {field.dtype} cannot hold")
    elif not np.isfinite(stored.astype(np.float32)).all():
        raise ClipError("non_finite", f"it has NaN, infinity, or more than {field.dtype} holds")
    return stored


def _npy(data: bytes, tensor: str | None) -> Array:
    _no_names("npy", tensor)
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _header_2
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    flat = _numbers(data[file.tell() :], dtype, shape)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _header_2(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_2_0(file)


def _safetensors(data: bytes, tensor: str | None) -> Array:
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise ValueError("its header is longer than the file")
    header = parse_json(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    if tensor is None and len(names) != 1:
        raise ValueError(f"it has {len(names)} tensors, so the field needs `tensor`")
    name = names[0] if tensor is None else tensor
    if name not in names:
        raise ValueError(f"it has no tensor {name!r}, but {', '.join(names[:5])}")
    facts: Mapping[str, Any] = header[name]
    first, end = (int(offset) for offset in facts["data_offsets"])
    if not 0 <= first <= end <= len(data) - 8 - length:
        raise ValueError(f"the place of {name!r} is outside of the file")
    shape = tuple(int(size) for size in facts["shape"])
    dtype = numpy_dtype(DTYPES[facts["dtype"]])
    return _numbers(data[8 + length + first : 8 + length + end], dtype, shape).reshape(shape)


def _json(data: bytes, tensor: str | None) -> Array:
    _no_names("json", tensor)
    return np.array(parse_json(data, parse_constant=_refused))


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _no_names(suffix: str, tensor: str | None) -> None:
    if tensor is not None:
        raise ValueError(f"a .{suffix} file has no tensors by name; leave `tensor` out")


def _numbers(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return a flat array of just as many bytes as its shape says."""
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"it has {len(data)} bytes for {list(shape)} of {dtype}")
    return np.frombuffer(data, dtype)


PARSERS: Mapping[str, Callable[[bytes, str | None], Array]] = {
    "npy": _npy,
    "safetensors": _safetensors,
    "json": _json,
}
