"""Arguments that have one sentence for what is wrong with them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentcache.errors import ConfigError


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a whole number, also one of numpy, as an int. Raises ConfigError."""
    number = _integer(value)
    if number is None or number < least:
        raise ConfigError(f"{name} is {value!r}: it must be a whole number, {least} or more")
    return number


def sample_number(index: Any, num_samples: int) -> int:
    """Return which sample an index means, from 0. Raises TypeError, and IndexError beyond the last one."""
    number = _integer(index)
    if number is None:
        raise TypeError(
            f"samples have numbers and keys, and {index!r} is neither; several at once are a slice"
        )
    if not -num_samples <= number < num_samples:
        raise IndexError(f"sample {number} of {num_samples}")
    return number % num_samples


def _integer(value: Any) -> int | None:
    """Return a whole number as an int, None for all else: Python takes True and False for 1 and 0."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


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


def part(name: str, value: Any) -> float:
    """Return a number from 0 to 1 as a float. Raises ConfigError."""
    try:
        number = float(value) if not isinstance(value, str | bytes | bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ConfigError(f"{name} is {value!r}; it is a part, from 0 to 1")
    return number


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ConfigError if a word is none of those that are known."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{name} {value!r} is not one of {', '.join(known)}")


def text(name: str, value: Any) -> str:
    """Return a text. Raises ConfigError."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}: it must be text")
    return value


def list_of_names(name: str, values: Any) -> list[str]:
    """Return names as a list. A text is none: its letters would count. Raises ConfigError."""
    if not isinstance(values, str | bytes | Mapping) and isinstance(values, Iterable):
        names = list(values)
        if all(isinstance(one, str) for one in names):
            return names
    example = values if isinstance(values, str) else "caption"
    raise ConfigError(f"{name} is {values!r}: give a list of names, such as [{example!r}]")


def by_name(name: str, value: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given by name as a dict; of None an empty one. Raises ConfigError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} is {value!r}: give values by name, such as {dict(example)!r}")
    return dict(value)
