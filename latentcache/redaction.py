"""What people see of a text: no secrets of URLs and options, and printable characters only. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Up to the last @ before the path: a password may hold one, too.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]*@")
#: Of http a query may be a secret as a whole; elsewhere `?` and `#` may be part of a name, or of a glob.
_QUERIES = re.compile(r"(?i)(https?://[^\s'\"<>?#]*[?#])[^\s'\"<>]*[^\s'\"<>.,:;)]")
_SIGNATURES = re.compile(
    r"(?i)([?&#;][^=&\s]*(?:signature|sig|token|key|secret|password|credential)[^=&\s]*=)[^&\s'\"]+"
)
_SECRET_NAME = re.compile(r"(?i)key|secret|token|passw|credential|sas|connection_string|auth")


def redact(text: str, options: Mapping[str, Any] | None = None) -> str:
    """Return `text` without users, passwords and queries of URLs, and without secret options."""
    for secret in _secrets(options or {}):
        text = text.replace(secret, "***")
    text = _QUERIES.sub(r"\1***", _CREDENTIALS.sub("***@", text))
    return _SIGNATURES.sub(r"\1***", text)


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= 4 and _SECRET_NAME.search(str(name)):
            yield value


def printable(text: str) -> str:
    r"""Return `text` with everything unprintable escaped, such as `\x1b`: a terminal would obey it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
