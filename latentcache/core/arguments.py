"""Arguments that have one sentence for what is wrong with them."""

from __future__ import annotations

import math
import operator
from typing import Any

from latentcache.errors import ConfigError


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a whole number, also one of numpy, as an int. Raises ConfigError."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(f"{name} is {value!r}: it must be a whole number, {least} or more")
    return number


def yes_or_no(name: str, value: Any) -> bool:
    """Return a bool: "no" would count as yes. Raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}: it must be True or False")
    return value


def positive_number(name: str, value: Any) -> float:
    """Return a finite number above 0 as a float. Raises ConfigError."""
    try:
        number = float(value) if not isinstance(value, str | bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"{name} is {value!r}: it must be a number above 0")
    return number
