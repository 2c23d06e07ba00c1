"""What is wrong with the metadata object of an array."""

from __future__ import annotations

from latentcache.core.json_text import parse_json
from latentcache.format import checksum
from latentcache.format.tables import read_bounded
from latentcache.storage.folder import Storage

_NAMES = ("node_type", "shape", "data_type")


def metadata_problem(storage: Storage, path: str, expected: bytes, wanted_by: str) -> str | None:
    """Return what is wrong with it, or None; other versions of zarr-python may write other text."""
    try:
        data = read_bounded(storage, path)
        checksum.check(data)
        stored = parse_json(data)
    except FileNotFoundError:
        return "it is missing"
    except ValueError as error:
        return str(error)
    wanted = parse_json(expected)
    is_same = isinstance(stored, dict) and all(stored.get(n) == wanted.get(n) for n in _NAMES)
    return None if is_same else f"it describes another array than {wanted_by}"
