"""Values without parts in another type that holds them, or a refusal. Pure.

Values are compared, and neither their spelling nor the precision of their types: the text 1.50 is the
number 1.5. Text holds all values, as it is how they are written.
"""

from __future__ import annotations

import contextlib
import re
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import differing
from latentcache.core.kinds import kind_of
from latentcache.core.names import CHUNK_ROWS

#: How much a message shows of a value.
SHOWN_CHARS = 100
#: A number as text. Names of digits, such as 007, are none.
_NUMBER = re.compile(r"(?ai)-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d{1,9})?|nan|-?inf(inity)?")
#: Floats from here on skip whole numbers.
_FIRST_GAP = 1 << 53
#: Digits of the widest decimals that Arrow has.
_DIGITS = 76
_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


def held(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return values in another type. Raises ValueError, which says why, if that does not hold them all."""
    if values.type == kind:
        return values
    starts = range(0, max(len(values), 1), CHUNK_ROWS)
    return pa.concat_arrays([_held(values.slice(start, CHUNK_ROWS), kind) for start in starts])


def shown(value: pa.Scalar) -> str:
    """Return a value as messages show it."""
    text = repr(value.as_py()) if kind_of(value.type) == "text" else str(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def _held(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.null_count == len(values):
        return pa.nulls(len(values), kind)
    try:
        made = _cast(values, kind)
    except _ERRORS:
        value = shown(_first_that_fails(values, kind))
        raise ValueError(f"{value} does not fit {kind}") from None
    rows = np.flatnonzero(_changed(values, made))
    if len(rows):
        was, is_now = (shown(each[int(rows[0])]) for each in (values, made))
        if pa.types.is_integer(kind):  # what is made of a number that is too large says nothing
            raise ValueError(f"{was} does not fit {kind}")
        raise ValueError(f"{was} would become {is_now}")
    return made


def _first_that_fails(values: pa.Array, kind: pa.DataType) -> pa.Scalar:
    """Return the first value that is not cast."""
    while len(values) > 1:
        half = len(values) // 2
        first, values = values.slice(0, half), values.slice(half)
        try:
            if first.null_count < half:
                _cast(first, kind)
        except _ERRORS:
            values = first
    return values[0]


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return values in another type; numbers that it lacks become others. Raises Arrow's errors."""
    given = values.type
    kinds = kind_of(given), kind_of(kind)
    if kinds[0] == "text":
        return _parsed(values, kind)
    if kinds == ("duration", "text"):  # Arrow writes no unit
        parts = values.cast(pa.string()), f" {given.unit}", ""
        return pc.binary_join_element_wise(*parts).cast(kind)
    if kinds != ("number", "number"):
        return values.cast(kind)
    if pa.types.is_integer(given) and pa.types.is_decimal(kind):
        return values.cast(pa.decimal256(_DIGITS, kind.scale)).cast(kind)
    with contextlib.suppress(*_ERRORS):
        return values.cast(kind)
    return values.cast(kind, safe=False)


def _parsed(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    name = kind_of(kind)
    if pa.types.is_integer(kind):
        return pc.replace_substring_regex(texts.cast(pa.string()), r"^(-?\d+)\.0+$", r"\1").cast(
            kind
        )
    if name not in ("day", "time of day", "time", "instant"):
        return texts.cast(kind)
    if name == "time of day":  # Arrow reads times only after a day, and 07 as one
        if not pc.all(pc.match_substring(texts, ":")).as_py():
            raise pa.ArrowInvalid("a time of day has minutes")
        texts = pc.binary_join_element_wise("1970-01-01", texts.cast(pa.string()), " ")
    times = _times(texts, kind.tz if name == "instant" else None)
    made = times.cast(kind)
    if name == "day" and differing(made.cast(times.type), times).any():
        raise pa.ArrowInvalid("a day has no time of day")
    return made


def _times(texts: pa.Array, zone: str | None) -> pa.Array:
    """Return texts as times of the first unit that has all their digits."""
    for unit in ("s", "ms", "us"):
        with contextlib.suppress(*_ERRORS):
            return texts.cast(pa.timestamp(unit, zone))
    return texts.cast(pa.timestamp("ns", zone))


def _changed(values: pa.Array, made: pa.Array) -> npt.NDArray[np.bool_]:
    """Tell which values are others in the type that they were cast to."""
    kinds = kind_of(values.type), kind_of(made.type)
    if kinds[1] == "number":
        return _changed_numbers(values, made)
    if "text" not in kinds:
        with contextlib.suppress(pa.ArrowNotImplementedError):
            return differing(values, made.cast(values.type))
    return np.zeros(len(values), bool)


def _changed_numbers(values: pa.Array, made: pa.Array) -> npt.NDArray[np.bool_]:
    if _are_read_back(values, made):
        return np.zeros(len(values), bool)
    given, now = (
        each.type.to_pandas_dtype() if pa.types.is_floating(each.type) else None
        for each in (values, made)
    )
    pairs = zip(values.to_pylist(), made.to_pylist(), strict=True)
    return np.array([not _is_same(was, is_now, given, now) for was, is_now in pairs], bool)


def _are_read_back(values: pa.Array, made: pa.Array) -> bool:
    """Tell whether Arrow takes all numbers there and back, which is quick and often so."""
    if pa.types.is_decimal(values.type) and pa.types.is_floating(made.type):
        return False  # Arrow reads several decimals as one float, and writes each of them again
    with contextlib.suppress(*_ERRORS):
        there, back = values.cast(made.type), made.cast(values.type)
        return not (differing(there, made).any() or differing(back, values).any())
    return False


def _is_same(was: Any, is_now: Any, given: Any, now: Any) -> bool:
    """Tell whether a number is the same in another type. given, now: NumPy's types, of floats.

    A float is also the decimal that is written for it, such as 0.1, and every decimal that reads as it.
    """
    if was is None or is_now is None:
        return was is is_now
    is_text = isinstance(was, str)
    if is_text and not _NUMBER.fullmatch(was):
        return False
    number = Decimal(was) if is_text else was
    if number != number or is_now != is_now:
        return bool(number != number and is_now != is_now)
    if number == is_now:
        return True
    if given is not None and isinstance(is_now, Decimal):
        return bool(given(is_now) == was)
    if now is not None and isinstance(number, Decimal):
        is_written = is_text and not was.lstrip("-").isdigit()
        return (is_written or abs(is_now) < _FIRST_GAP) and Decimal(str(now(is_now))) == number
    return False
