"""Texts within what is printed for a trainer: TOML, JSON, YAML, Python, Hydra, a pattern of braces."""

from __future__ import annotations

import json
import re

#: What Hydra takes without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9_./*:@%+-]*")
#: Control characters that JSON leaves as they are, and what YAML takes for the end of a line.
_NO_TEXT = re.compile("[\x7f-\x9f\u2028\u2029]")


def quoted(text: str) -> str:
    """Return a text in double quotes, as JSON, TOML, YAML and Python read it alike."""
    return _NO_TEXT.sub(_escaped, json.dumps(text, ensure_ascii=False))


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def without_braces(text: str) -> str:
    """Return a text that braceexpand, and so WebDataset, expands to itself."""
    return re.sub(r"([\\{}])", r"\\\1", text)


def hydra_value(text: str) -> str:
    """Return a text as the value of one of Hydra's overrides: backslashes count only before a quote."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
