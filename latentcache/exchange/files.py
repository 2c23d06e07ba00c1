"""Files of other programs: tensors to bytes, and back without running code that a file holds."""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentcache.core.dtypes import as_numpy, torch_dtype
from latentcache.core.json_text import OTHER_HEADER, fault_of, parse_json
from latentcache.errors import CorpusError
from latentcache.exchange.damage import read_whole, refuse
from latentcache.format.safetensors import DTYPES
from latentcache.storage.folder import Storage

#: The longest header of a safetensors file, which that format's own library takes.
MAX_HEADER_BYTES = 100_000_000
#: A file of one clip that is compressed may hold so much.
MAX_UNPACKED_BYTES = 1 << 31
#: What torch.load raises for files that are half there, are no archive, or hold more than tensors.
UNLOADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError),
    *(AttributeError, ImportError, AssertionError, struct.error, MemoryError),
)


def names_in(storage: Storage, folder: str, suffix: str) -> list[str]:
    """Return the sorted names of the files directly in a folder that end so; see `files_in`."""
    start = f"{folder}/" if folder else ""
    paths = _linked(storage, folder, deep=False) if storage.is_local else storage.list(folder)
    names = (path.removeprefix(start) for path in paths)
    return sorted(name for name in names if name.endswith(suffix) and not is_hidden(name))


def files_in(storage: Storage, folder: str, suffix: str) -> list[str]:
    """Return the sorted paths of the files in a folder and below it that end so.

    Links count as what they lead to, as a trainer reads them. One that leads nowhere counts as a file,
    which is then named as one that is not there. Hidden files do not count, such as those that macOS
    leaves, and unfinished ones.
    """
    if storage.is_local:
        paths: Iterable[str] = _linked(storage, folder, deep=True)
    else:
        paths = (file.path for file in storage.files(folder))
    return sorted(path for path in paths if path.endswith(suffix) and not is_hidden(path))


def is_hidden(path: str) -> bool:
    """Tell whether a file, or a folder above it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def all_files(storage: Storage) -> list[str]:
    """Return the sorted paths of all files that count, see `files_in`; none if there is no folder."""
    if storage.is_local and not storage.local_path().is_dir():
        return []
    try:
        return files_in(storage, "", "")
    except FileNotFoundError:
        return []


def _linked(storage: Storage, folder: str, *, deep: bool) -> Iterator[str]:
    """Yield the files of a local folder. A link to a folder above it is a loop, and is not followed."""
    root = storage.local_path()
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root / folder, frozenset())]
    while waiting:
        here, above = waiting.pop()
        place, entries = _entries(here)
        if place in above:
            continue
        for path, is_folder in entries:
            if not is_folder:
                yield path.relative_to(root).as_posix()
            elif deep and not is_hidden(path.name):
                waiting.append((path, above | {place}))


def _entries(folder: Path) -> tuple[tuple[int, int], list[tuple[Path, bool]]]:
    """Return which folder one is; and what is in it that counts, with whether that is a folder.

    Nothing if it is not there. Raises CorpusError.
    """
    try:
        facts = folder.stat()
        with os.scandir(folder) as entries:
            found = [(Path(entry.path), _is_folder(entry)) for entry in entries]
    except FileNotFoundError:
        return (0, 0), []
    except OSError as error:
        raise CorpusError(
            f"cannot list {folder}: {error.strerror}. Nothing was imported."
        ) from None
    counts = [(path, is_folder) for path, is_folder in found if is_folder is not None]
    return (facts.st_dev, facts.st_ino), counts


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Tell whether an entry, or what it leads to, is a folder; None if it is no file, either."""
    if not entry.is_symlink():
        return True if entry.is_dir() else False if entry.is_file() else None
    path = Path(entry.path)
    if path.is_dir():
        return True
    return False if path.is_file() or not path.exists() else None


def torch_bytes(value: Any) -> bytes:
    """Return what `torch.save` writes; tensors are saved without the memory around them."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def load_torch(storage: Storage, path: str, *, mapped: bool = False) -> Any:
    """Return what a file of `torch.save` holds: tensors and plain values only; see `read_whole`.

    mapped: only shapes are of interest, so on a local disk no tensor's bytes are read. They must not be
    used: if a trainer writes the file at that moment, the process would die.
    """
    with read_whole(storage, path, UNLOADABLE, _why):
        if mapped and storage.is_local:
            local = storage.local_path(path)
            with local.open("rb") as file:
                start = file.read(4)
            if start == b"PK\x03\x04":
                return torch.load(local, map_location="cpu", weights_only=True, mmap=True)
        return load_torch_bytes(_checked(_unpacked(storage.read(path))))


def load_torch_bytes(data: bytes) -> Any:
    """Return what the bytes of `torch.save` hold: tensors and plain values only."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def is_plain(value: Any) -> bool:
    """Tell whether something is a tensor of numbers, one after the other, and none of the odd kinds."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex() or value.is_neg() or value.is_nested)
    )


def _checked(data: bytes) -> bytes:
    """Return bytes that torch.save can have written, as an archive or as older ones did. ValueError."""
    if data[:1] == b"\x80" and data[1:2] != b"\x02":
        raise ValueError("it is a pickle, and none of torch.save")
    return data


def _unpacked(data: bytes) -> bytes:
    """Return bytes that may be gzipped. Raises ValueError for more than a clip can hold."""
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(MAX_UNPACKED_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) > MAX_UNPACKED_BYTES:
        raise ValueError("it unpacks to more than 2 GiB")
    return found


def _why(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
        return "holds more than tensors and plain values, and loading it could run its code"
    first = str(error).strip().split("\n")[0].removesuffix(".")
    return f"cannot be loaded, so it may be half written: {first or type(error).__name__}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor of a safetensors file. offset: of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file holds, by name."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(storage: Storage, path: str) -> Header:
    """Read what a safetensors file holds, and check that all of it is there. Raises CorpusError."""
    with read_whole(storage, path, OTHER_HEADER, _header_fault):
        size = storage.size(path)
        (length,) = struct.unpack("<Q", storage.read_ranges(path, [(0, 8)])[0])
        if length > min(size, MAX_HEADER_BYTES):
            raise ValueError("its header is not all there")
        raw = parse_json(storage.read_ranges(path, [(8, length)])[0])
        metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
        tensors = {str(name): _entry(of, 8 + length, size) for name, of in raw.items()}
    return Header(tensors=tensors, metadata=metadata)


def _header_fault(error: Exception) -> str:
    return f"is no whole safetensors file, so it may be half written: {fault_of(error)}"


def _entry(raw: Mapping[str, Any], start: int, size: int) -> Entry:
    first, last = (int(offset) for offset in raw["data_offsets"])
    shape = tuple(int(side) for side in raw["shape"])
    dtype = DTYPES.get(str(raw["dtype"]))
    if dtype is None:
        raise ValueError(f"tensors of {raw['dtype']} are not known")
    if min((0, first, *shape)) < 0 or start + last > size:
        raise ValueError("its tensors' bytes are not all there")
    if last - first != math.prod(shape) * torch_dtype(dtype).itemsize:
        raise ValueError("a tensor's bytes are not those of its shape")
    return Entry(dtype=dtype, shape=shape, offset=start + first, num_bytes=last - first)


def read_tensor(storage: Storage, path: str, entry: Entry) -> torch.Tensor:
    """Read one tensor of a safetensors file; see `read_part`."""
    data = read_part(storage, path, entry.offset, entry.num_bytes)
    return tensor_of(data, entry.dtype, entry.shape)


def read_part(storage: Storage, path: str, offset: int, num_bytes: int) -> bytes:
    """Read bytes that a file had a moment ago. Raises CorpusError if it has changed meanwhile."""
    with read_whole(storage, path, (), str):
        data = storage.read_ranges(path, [(offset, num_bytes)])[0]
    if len(data) != num_bytes:
        raise refuse(storage, path, "is shorter than it was a moment ago")
    return data


def tensor_of(data: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return bytes in C order as a tensor of its own."""
    array = np.frombuffer(bytearray(data), np.uint8)
    return torch.from_numpy(array).view(torch_dtype(dtype)).reshape(shape)


def array_of(tensor: torch.Tensor) -> Any:
    """Return a tensor as a numpy array; its bfloat16 is that of ml_dtypes."""
    return as_numpy(tensor.detach().contiguous())


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's data type, as caches have it."""
    return str(tensor.dtype).removeprefix("torch.")
