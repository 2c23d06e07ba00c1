"""URLs of sources that are a part of a file: a range of bytes, or a row of a table. No I/O.

`part://OFFSET-SIZE.SUFFIX::FILE` is a range, as of a tar's member. `row://COLUMN/ROW.SUFFIX::FILE` is what
a row of a Parquet or Arrow file holds in a column of bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_SUFFIX = r"(?:\.(?P<suffix>[A-Za-z0-9]{1,16}))?"
_RANGE = re.compile(
    rf"part://(?P<offset>\d{{1,18}})-(?P<size>\d{{1,18}}){_SUFFIX}::(?P<file>.+)", re.S
)
_ROW = re.compile(rf"row://(?P<column>[^/:?#]+)/(?P<row>\d{{1,18}}){_SUFFIX}::(?P<file>.+)", re.S)
#: What comes before such a URL's suffix, as an expression for Arrow's RE2.
PREFIX = r"^(part|row)://[^:]*"


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """A range of a file's bytes. file: its URL. suffix: of what is in it, without its dot, or empty."""

    file: str
    offset: int
    size: int
    suffix: str = ""

    @property
    def url(self) -> str:
        """Its URL."""
        return f"part://{self.offset}-{self.size}{_dotted(self.suffix)}::{self.file}"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """The bytes in a row of a table. column: its name; of a column of structs `NAME.FIELD`. row: from 0."""

    file: str
    column: str
    row: int
    suffix: str = ""

    @property
    def url(self) -> str:
        """Its URL."""
        column = quote(self.column, safe="")
        return f"row://{column}/{self.row}{_dotted(self.suffix)}::{self.file}"


def part_of(url: str) -> ByteRange | TableRow | None:
    """Return what part of a file a URL names; None where it names a whole file."""
    if found := _RANGE.fullmatch(url):
        return ByteRange(
            file=found["file"],
            offset=int(found["offset"]),
            size=int(found["size"]),
            suffix=found["suffix"] or "",
        )
    if found := _ROW.fullmatch(url):
        return TableRow(
            file=found["file"],
            column=unquote(found["column"]),
            row=int(found["row"]),
            suffix=found["suffix"] or "",
        )
    return None


def file_of(url: str) -> str:
    """Return the URL of the file that a source is in, or is."""
    part = part_of(url)
    return url if part is None else part.file


def _dotted(suffix: str) -> str:
    """Return a suffix with its dot where it may be in a URL; else nothing."""
    return f".{suffix}" if re.fullmatch(r"[A-Za-z0-9]{1,16}", suffix) else ""
