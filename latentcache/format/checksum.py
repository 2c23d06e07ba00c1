"""A CRC32C inside the file that it is of: tables, cache.json and Zarr's metadata carry their own.

The CRC32C is taken with eight zeros in its own place, so that a flipped byte anywhere is found,
without a second object that could disagree. Shard objects have theirs in their sample tables.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np

from latentcache.storage.spill import Data

#: Name of the JSON member, and of the key in a Parquet file's metadata.
KEY = "latentcache.crc32c"
EMPTY = "0" * 8
#: What stands before the eight digits: in JSON text, and in Parquet's footer (Thrift's compact form).
_JSON = f'"{KEY}": "'.encode()
_PARQUET = KEY.encode() + b"\x18\x08"
_SHA256 = re.compile("[0-9a-f]{64}")


def seal_json(data: Mapping[str, Any]) -> bytes:
    """Return JSON text that carries its own CRC32C; the same values give the same bytes."""
    text = json.dumps({**data, KEY: EMPTY}, indent=2, sort_keys=True, allow_nan=False)
    return seal(text.encode() + b"\n")


def seal(data: bytes) -> bytes:
    """Return `data`, which has EMPTY under KEY, with its CRC32C there."""
    place = _place(data)
    digits, view = _crc(data, place).encode(), memoryview(data)  # slices of bytes would be copies
    return b"".join([view[:place], digits, view[place + len(EMPTY) :]])


def seal_parquet(data: memoryview | mmap.mmap) -> None:
    """Do as `seal` does in the bytes of a Parquet file themselves: the mark is in its footer."""
    footer = bytes(data[-(int.from_bytes(data[-8:-4], "little") + 8) :])
    place = len(data) - len(footer) + footer.rindex(_PARQUET) + len(_PARQUET)
    data[place : place + len(EMPTY)] = _crc(data, place).encode()


def check(data: Data) -> None:
    """Raise ValueError unless the bytes are those that were sealed."""
    place = _place(data)
    if data[place : place + len(EMPTY)] != _crc(data, place).encode():
        raise ValueError("its bytes fail their CRC32C")


def is_sha256(text: str) -> bool:
    """Tell whether a text is a SHA-256 in hexadecimal."""
    return _SHA256.fullmatch(text) is not None


def _place(data: Data) -> int:
    mark = _PARQUET if data[:4] == b"PAR1" else _JSON
    found = data.rfind(mark)
    if found < 0:
        raise ValueError("it has no CRC32C of its own, so it is cut short or not of a cache")
    return found + len(mark)


def _crc(data: Data | memoryview, place: int) -> str:
    """Return the CRC32C in hexadecimal. Through numpy, because slices of bytes would be copies."""
    view = np.frombuffer(data, np.uint8)
    crc = google_crc32c.value(view[:place])
    crc = google_crc32c.extend(crc, EMPTY.encode())
    return f"{google_crc32c.extend(crc, view[place + len(EMPTY) :]):08x}"
