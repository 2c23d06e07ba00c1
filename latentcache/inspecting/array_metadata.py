"""What is wrong with the metadata object of an array."""

from __future__ import annotations

from typing import Any

from latentcache.core.json_text import parse_json
from latentcache.format import checksum
from latentcache.format.tables import read_bounded
from latentcache.storage.folder import Storage

_NAMES = ("node_type", "shape", "data_type")


def metadata_problem(
    storage: Storage, path: str, expected: bytes, wanted_by: str, least_rows: int | None = None
) -> str | None:
    """Return what is wrong with it, or None; other versions of zarr-python may write other text.

    least_rows: how many rows the array must have at least, 0 if it need not be there yet; None: all.
    """
    try:
        data = read_bounded(storage, path)
        checksum.check(data)
        stored = parse_json(data)
    except FileNotFoundError:
        return None if least_rows == 0 else "it is missing"
    except ValueError as error:
        return str(error)
    wanted = parse_json(expected)
    is_same = isinstance(stored, dict) and all(stored.get(n) == wanted.get(n) for n in _NAMES)
    if is_same or (least_rows is not None and _is_shorter(stored, wanted, least_rows)):
        return None
    return f"it describes another array than {wanted_by}"


def _is_shorter(stored: Any, wanted: Any, least_rows: int) -> bool:
    """Return whether an array is as wanted but for rows at its end, of which nothing is stored yet."""
    shape = stored.get("shape") if isinstance(stored, dict) else None
    if not isinstance(shape, list) or not shape or type(shape[0]) is not int:
        return False
    rows = range(least_rows, wanted["shape"][0]) if "shape" in wanted else range(0)
    longer = {**stored, "shape": [*wanted.get("shape", [])[:1], *shape[1:]]}
    return shape[0] in rows and all(longer.get(n) == wanted.get(n) for n in _NAMES)
