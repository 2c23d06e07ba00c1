"""What a table says of a source that its file cannot be: claims are trusted, and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentcache.decoders.index import MAX_DURATION_S


def implausible(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return reason and message where a video cannot have the frames that its row claims; else nothing.

    facts: frames, fps, duration_s and identity, whose first part is the file's size; of a source that could
    not be read there is none. No clip is planned for frames that no file of that size holds.
    """
    num_bytes, frames = _size(facts.get("identity")), facts["frames"]
    if num_bytes is not None and frames > num_bytes:
        what = f"{frames} frames, and the file has {num_bytes} bytes"
    elif not facts["duration_s"] <= MAX_DURATION_S:
        what = f"{frames} frames at {facts['fps']:g} per second, which take more than a week"
    else:
        return {}
    return {"reason": "corrupt", "message": f"the table says {what}: correct it, or leave it empty"}


def _size(identity: str | None) -> int | None:
    """Return the size in an identity: `SIZE-DIGEST`."""
    size = (identity or "").partition("-")[0]
    return int(size) if size.isdigit() else None
