"""Numbers in words, for people."""

from __future__ import annotations

from collections.abc import Sequence

#: Names that a message gives, where it says no other number.
NAMED = 5


def human_bytes(count: float) -> str:
    """Return a number of bytes in words, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def human_time(seconds: float) -> str:
    """Return a time in words, such as `3.2 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a count and its noun, such as `1 clip` or `1,200 clips`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def some_of(names: Sequence[str], most: int = NAMED, separator: str = ", ") -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
