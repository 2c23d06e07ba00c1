"""What planning writes into a cache, to be compared byte for byte."""

from __future__ import annotations

from pathlib import Path


def planned_files(cache: Path) -> dict[str, bytes]:
    """Return the objects of a local cache's plan by their paths, with what is said of its sources."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.glob("plan/**/*"))
        if path.is_file()
    }
