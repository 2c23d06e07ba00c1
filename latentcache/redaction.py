"""What people see of a text: no secrets of URLs and options, and printable characters only. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Up to the last @ before the path: a password may hold one, too.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]*@")
#: Of http a query may be a secret as a whole; elsewhere `?` and `#` may be part of a name, or of a glob.
#: The whole URL is taken at once, and a name up to its `=`: a text may be long, and made to be slow.
_HTTP = re.compile(r"(?i)https?://[^\s'\"<>]+")
_QUERY = re.compile(r"[?#]")
_AFTER_A_URL = ".,:;)"
#: A clip's key is its source's name, `#` and its number: that is no secret, nor is it sent to a server.
_CLIP_NUMBER = re.compile(r"#[0-9]{1,6}")
_NAME, _VALUE = re.compile(r"[^=&\s]*"), re.compile(r"[^&\s'\"]+")
_IN_A_URL = re.compile(r"[?#;]")
_SIGNATURE = re.compile(r"(?i)signature|sig|token|key|secret|password|credential")
_SECRET_NAME = re.compile(r"(?i)key|secret|token|passw|credential|sas|connection_string|auth")


def redact(text: str, options: Mapping[str, Any] | None = None) -> str:
    """Return `text` without users, passwords and queries of URLs, and without secret options."""
    for secret in _secrets(options or {}):
        text = text.replace(secret, "***")
    return _without_signatures(_HTTP.sub(_without_query, _CREDENTIALS.sub("***@", text)))


def _without_query(url: re.Match[str]) -> str:
    found, text = _QUERY.search(url[0]), url[0]
    query = text[found.end() :].rstrip(_AFTER_A_URL) if found else ""
    if not found or not query or _CLIP_NUMBER.fullmatch(found[0] + query):
        return text
    return f"{text[: found.end()]}***{text[found.end() + len(query) :]}"


def _without_signatures(text: str) -> str:
    """Return a text without the values of `?name=value` and `&name=value` whose names are of secrets."""
    parts: list[str] = []
    done, at = 0, 0 if "=" in text else len(text)
    while at < len(text):
        found = _NAME.match(text, at)
        assert found is not None  # it matches nothing, too
        end = found.end()
        value = _VALUE.match(text, end + 1) if text.startswith("=", end) else None
        if value and _is_secret(text, at, end):
            parts += [text[done : end + 1], "***"]
            done = at = value.end()
        else:
            at = end + 1
    return "".join([*parts, text[done:]])


def _is_secret(text: str, start: int, end: int) -> bool:
    """Tell whether this part of a text is a name in a URL, and one of a secret."""
    if text[max(0, start - 1) : start] != "&":
        found = _IN_A_URL.search(text, start, end)
        if not found:
            return False
        start = found.end()
    return _SIGNATURE.search(text, start, end) is not None


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
