"""Names of objects that are being written: listings leave them out, and a killed process leaves them."""

from __future__ import annotations

import os
import uuid

TEMPORARY_SUFFIX = ".tmp"
#: Bytes of a name that its temporary one shows: with the rest, no longer than any disk's names (255).
MAX_SHOWN_BYTES = 200


def temporary_name(name: str) -> str:
    """Return a new name beside `name`, under which nobody else writes."""
    shown = os.fsencode(name)[:MAX_SHOWN_BYTES].decode(errors="ignore")
    return f".{shown}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
