"""URLs as text: joined, told apart from paths, and shown to people without secrets. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")
_MAGIC = re.compile(r"[*?\[]")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_SIGNATURES = re.compile(
    r"(?i)([?&][^=&\s]*(?:signature|sig|token|key|secret|password|credential)[^=&\s]*=)[^&\s'\"]+"
)
_SECRET_NAME = re.compile(r"(?i)key|secret|token|passw|credential|sas|connection_string|auth")


def redact(text: str, options: Mapping[str, Any] | None = None) -> str:
    """Return `text` without the users, passwords and signatures of URLs and without secret options."""
    for secret in _secrets(options or {}):
        text = text.replace(secret, "***")
    return _SIGNATURES.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= 4 and _SECRET_NAME.search(str(name)):
            yield value


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL (`s3` of `s3://...`), or None for a local path."""
    match = _URL.match(text)
    return match[1] if match else None


def is_url(text: str) -> bool:
    """Tell a URL (`s3://...`, `simplecache::s3://...`) from a local path."""
    return scheme_of(text) is not None


def has_password(url: str) -> bool:
    """Tell whether a URL carries `user:password@`."""
    return re.search(r"://[^/@\s:]*:[^/@\s]*@", url) is not None


def join(base: str, *parts: str) -> str:
    """Join parts with single slashes; in a chained URL (`zip://a::s3://b`) they go on the first path."""
    head, chain, rest = base.partition("::") if is_url(base) else (base, "", "")
    if chain and "://" in head:
        return join(head, *parts) + chain + rest
    if chain:
        return head + chain + join(rest, *parts)
    base = base if base.endswith("://") else base.rstrip("/") + "/"
    return (base + "/".join(p.strip("/") for p in parts if p)).removesuffix("/") or "/"


def has_magic(url: str) -> bool:
    """Tell whether a URL is a glob."""
    return _MAGIC.search(url) is not None


def folder_of(url: str) -> str:
    """Return what precedes the last part of a URL or path, with its slash: `s3://b/` of `s3://b/a`."""
    return url[: url.rfind("/") + 1]
