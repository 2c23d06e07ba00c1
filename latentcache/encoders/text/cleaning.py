"""What references do to a caption before it is cut into tokens. Pure functions of text."""

from __future__ import annotations

import html
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from typing import Literal

from latentcache.core.machine import install_command
from latentcache.errors import ConfigError

Cleaning = Literal["none", "strip", "ftfy"]


def strip(text: str) -> str:
    """Return the text without white space at its ends."""
    return text.strip()


def repair(text: str) -> str:
    """Repair mojibake, unescape HTML twice, and make one space of each white space (Wan, Kandinsky 5).

    diffusers leaves ftfy out without a word if it is not installed; here that is an error.
    """
    try:
        import ftfy
    except ImportError:
        raise ConfigError(
            "this family repairs captions with the package 'ftfy', which is not installed. Without it, "
            f"captions with mojibake or curly quotes would get other states. Run: {install_command('text')}"
        ) from None
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", unescaped).strip()


#: Cleanings by the name that a recipe has for them.
CLEANINGS: Mapping[Cleaning, Callable[[str], str]] = {
    "none": str,
    "strip": strip,
    "ftfy": repair,
}


def cleaning_facts(name: Cleaning) -> dict[str, str]:
    """Return a cleaning's part of the recipe."""
    if name != "ftfy":
        return {"name": name}
    CLEANINGS[name]("")  # raises where ftfy is missing
    return {
        "name": "ftfy, unescape twice, collapse spaces",
        "ftfy": importlib.metadata.version("ftfy"),
    }
