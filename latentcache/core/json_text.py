"""JSON that others wrote: parsed, what is raised where it is of another shape, and that in words."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pydantic

#: What is raised where JSON is of another shape than it should be, or where it is none: a list for an
#: object, a key that is not there, a number beyond a type, objects within objects without end.
OTHER_SHAPE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
#: That, and numbers in bytes.
OTHER_HEADER = (*OTHER_SHAPE, struct.error)
#: No number of fewer digits overflows a float, and no message grows long by one.
MAX_DIGITS = 300


def parse_json(data: bytes | str, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON; raises ValueError and nothing else. parse_constant: see json.loads."""
    try:
        return json.loads(data, parse_constant=parse_constant, parse_int=_whole)
    except RecursionError as error:
        raise ValueError(fault_of(error)) from None


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number in it has {len(digits)} digits")
    return int(digits)


def fault_of(error: Exception) -> str:
    """Say what is wrong, of an error that one of `OTHER_SHAPE` is."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    if isinstance(error, KeyError):
        return f"no {error} in it"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, TypeError | AttributeError):
        return f"something in it is of another type than it should be: {error}"
    return str(error)
