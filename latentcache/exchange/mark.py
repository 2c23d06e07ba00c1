"""What an export leaves beside a layout's files: of what it is, and what it has written.

The mark is written first. The list of all files is written last: it says that the export is whole.
All are hidden and of no known suffix, so that no trainer takes one for a file of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import pyarrow as pa

from latentcache.core.json_text import OTHER_SHAPE, fault_of, parse_json
from latentcache.format import checksum
from latentcache.format.tables import from_parquet, read_large, to_large_parquet
from latentcache.storage.folder import Storage
from latentcache.storage.spill import Data

#: What a folder is an export of.
MARK = ".latentcache-export.json"
#: The list of the files of a whole export, and what the lists of a run that goes on begin with.
LIST = ".latentcache-export.files"
PART = f"{LIST}-"
_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("crc32c", pa.uint32()),
        pa.field("about", pa.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A file as an export wrote it. about: it says what the others are, and holds no clip."""

    num_bytes: int
    crc32c: int
    about: bool = False


def written(data: bytes, *, about: bool = False) -> Written:
    """Return what is recorded of a file of these bytes."""
    return Written(num_bytes=len(data), crc32c=google_crc32c.value(data), about=about)


def mark_bytes(mark: Mapping[str, Any]) -> bytes:
    """Return a mark as it is stored."""
    return checksum.seal_json(mark)


def read_mark(out: Storage) -> dict[str, Any]:
    """Return the mark of a folder. Raises FileNotFoundError, and ValueError for one that is damaged."""
    data = out.read(MARK)
    checksum.check(data)
    return dict(parse_json(data))


def list_bytes(files: Mapping[str, Written]) -> Data:
    """Return a list of files as it is stored, in the order of their paths."""
    rows = sorted(files.items())
    columns = {
        "path": [path for path, _ in rows],
        "num_bytes": [file.num_bytes for _, file in rows],
        "crc32c": [file.crc32c for _, file in rows],
        "about": [file.about for _, file in rows],
    }
    return to_large_parquet(pa.table(columns, schema=_SCHEMA))


def read_list(out: Storage, path: str = LIST) -> dict[str, Written]:
    """Return the files of a list. Raises FileNotFoundError, and ValueError for one that is damaged."""
    try:
        columns = from_parquet(read_large(out, path)).to_pydict()
        facts = zip(columns["num_bytes"], columns["crc32c"], columns["about"], strict=True)
        files = [Written(num_bytes=size, crc32c=crc, about=about) for size, crc, about in facts]
        return dict(zip(columns["path"], files, strict=True))
    except OTHER_SHAPE as error:
        raise ValueError(fault_of(error)) from None


def sizes_in(storage: Storage, paths: Iterable[str]) -> dict[str, int | None]:
    """Return the bytes of files, see `size_of`, with one listing for all that no link leads to."""
    listed = {file.path: file.num_bytes for file in storage.files() if not file.is_link}
    return {path: listed[path] if path in listed else size_of(storage, path) for path in paths}


def size_of(storage: Storage, path: str) -> int | None:
    """Return the bytes of a file, also of one that a link leads to; None if it is not there."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return None


def command_of(mark: Mapping[str, Any], url: str) -> str:
    """Return the command of the export into the folder at `url`."""
    options = dict(mark["options"])
    fields = options.pop("fields")
    words = ["latentcache", "export", mark["cache"], url, "--to", mark["layout"]]
    for name, value in options.items():
        words += [f"--{name}", str(value)] if value else []
    for name in fields:
        words += ["--field", name]
    return shlex.join(words)
