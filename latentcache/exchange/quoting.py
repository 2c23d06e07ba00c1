"""Texts within what is printed for a trainer: TOML, JSON, Python, Hydra, a pattern of braces."""

from __future__ import annotations

import json
import re

#: What Hydra takes without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9_./*:@%+-]*")


def quoted(text: str) -> str:
    """Return a text in double quotes, as JSON, TOML and Python read it alike."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def without_braces(text: str) -> str:
    """Return a text that braceexpand, and so WebDataset, expands to itself."""
    return re.sub(r"([\\{}])", r"\\\1", text)


def hydra_value(text: str) -> str:
    """Return a text as the value of one of Hydra's overrides: backslashes count only before a quote."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
