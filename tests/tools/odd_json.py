"""JSON of other shapes than a reader expects: whole texts, and a sound document with one value replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from latentcache.format import checksum

DEEP = 100_000
#: Values as JSON text, some of which only Python's parser takes.
VALUES = (
    "[]", "{}", "null", "true", "-1", "0", "0.5", "NaN", "Infinity", "1e999",
    "9" * 300, "9" * 4000, "9" * 5000,
    '""', '"x"', '"9e99"', r'"\ud800"', r'"\u0000"', "[1]", '["x"]', "[null]", "[[[]]]", '{"a": 1}',
    '{"a": 1, "a": [2]}', "[" * 900 + "]" * 900, "[" * DEEP, '{"a":' * DEEP,
)  # fmt: skip
#: Files that are no JSON, or not one object of it.
FILES = (
    b"", b"\xff\xfe\x00", b"\x80", b'{"a": "\xff"}', b"\xef\xbb\xbf{}", b"\0" * 64, b'{"a": 1,',
    *(value.encode() for value in VALUES),
)  # fmt: skip
_MARK = "the value that is replaced"


def spoilt(document: Any) -> Iterator[bytes]:
    """Yield the document with each of its values replaced by each of `VALUES`, and without it."""
    for place in places(document):
        yield from spoilt_at(document, place)


def spoilt_at(document: Any, place: tuple[Any, ...]) -> Iterator[bytes]:
    """The same, of one of its values."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = _MARK
    text = json.dumps(copy)
    for value in VALUES:
        yield text.replace(f'"{_MARK}"', value, 1).encode()
    del inner[place[-1]]
    yield json.dumps(copy).encode()


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the values of a document are; of a list, the first one and the last."""
    if path:
        yield path
    if isinstance(document, dict):
        for key in document:
            yield from places(document[key], (*path, key))
    elif isinstance(document, list):
        for key in sorted({0, len(document) - 1} if document else ()):
            yield from places(document[key], (*path, key))


def sealed(text: bytes) -> bytes:
    """Return JSON with a CRC32C that fits, as somebody who means harm would write it."""
    mark = f'"{checksum.KEY}": "{checksum.EMPTY}"'.encode()
    if text.startswith(b"{") and text != b"{}":
        return checksum.seal(b"{" + mark + b", " + text[1:])
    return checksum.seal(b"[{" + mark + b"}, " + text + b"]")
