"""Kept columns take the types that a cache has for them if these hold every value, or are refused."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from latentcache.core.kinds import unlike
from latentcache.errors import CorpusError
from latentcache.format.per_frame import PER_FRAME, struct_of
from latentcache.planning.kept_types import as_known

DAY, TIME = datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 17, 30)
MIDNIGHT = datetime.datetime(2024, 1, 1)
ZONE = datetime.timezone(datetime.timedelta(hours=5))
LATER = datetime.timedelta(milliseconds=1500)
NAIVE, UTC, ZONED = (pa.timestamp("us", tz) for tz in (None, "UTC", "+05:00"))
NAN = float("nan")

#: Values of a column now, its type before, and what is said.
LOST: dict[str, tuple[pa.Array, pa.DataType, str]] = {
    "time of day": (pa.array([TIME]), pa.date32(), "2024-01-01 17:30:00.* would become 2024-01-01"),
    "time of day, date64": (pa.array([TIME]), pa.date64(), "would become"),
    "in lists": (pa.array([[MIDNIGHT, TIME]]), pa.list_(pa.date32()), "would become"),
    "in objects": (pa.array([{"a": TIME}]), pa.struct({"a": pa.date32()}), "would become"),
    "in maps": (
        pa.array([[("a", TIME)]], pa.map_(pa.string(), NAIVE)),
        pa.map_(pa.string(), pa.date32()),
        "would become",
    ),
    "in categories": (pa.array([TIME]).dictionary_encode(), pa.date32(), "would become"),
    "float32": (pa.array([0.5, 0.1]), pa.float32(), r"0\.1 would become 0\.1000000"),
    "float16": (pa.array([0.1], pa.float32()), pa.float16(), "would become"),
    "beside NaN": (pa.array([NAN, 0.1]), pa.float32(), r"0\.1 would become"),
    "decimals": (pa.array([1 / 3]), pa.decimal128(5, 2), "would become"),
    "leading zeros": (pa.array(["07"]), pa.int64(), "'07' does not fit int64"),
    "zone of none": (pa.array([TIME]), UTC, "are not the same values"),
    "none of a zone": (pa.array([TIME], UTC), NAIVE, "are not the same values"),
    "day as instant": (pa.array([DAY]), UTC, "are not the same values"),
    "texts as bytes": (pa.array(["a"]), pa.binary(), "are not the same values"),
    "bytes as texts": (pa.array([b"a"]), pa.string(), "are not the same values"),
    "numbers as times": (pa.array([5]), NAIVE, "are not the same values"),
    "times as numbers": (pa.array([TIME]), pa.int64(), "are not the same values"),
    "numbers as durations": (pa.array([5]), pa.duration("s"), "are not the same values"),
    "only the time of day": (pa.array([TIME]), pa.time64("us"), "are not the same values"),
    "parts of whole": (pa.array([1.0, 1.5]), pa.int64(), r"1\.5 does not fit int64"),
    "digits of texts": (pa.array([str(2**53 + 1)]), pa.float64(), "would become 9007199254740992"),
    "digits of decimals": (pa.array([decimal.Decimal(2**53 + 1)]), pa.float64(), "would become"),
    "too large": (pa.array([1, 300]), pa.int8(), "300 does not fit int8"),
    "larger than any": (pa.array([2**63 - 1]), pa.float64(), r"07 would become 9\.2"),
    "no number": (pa.array(["1", "a"]), pa.float64(), "'a' does not fit double"),
    "a text of a time as day": (
        pa.array(["2024-01-01 17:30:00"]),
        pa.date32(),
        "does not fit date32",
    ),
    "a text without a zone": (pa.array(["2024-01-01 10:00:00"]), UTC, "does not fit timestamp"),
    "digits of seconds": (
        pa.array(["10:00:00.5"]),
        pa.time32("s"),
        "'10:00:00.5' does not fit time32",
    ),
    "another length": (
        pa.array([[1, 2], [3]]),
        pa.list_(pa.int64(), 2),
        "has 1 values, not the 2 of fixed",
    ),
    "parts of seconds": (
        pa.array([LATER]),
        pa.duration("s"),
        "0:00:01.500000 does not fit duration.s.",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_values_that_a_type_does_not_hold_are_refused(name: str) -> None:
    now, before, why = LOST[name]
    with pytest.raises(CorpusError, match=rf"(?s)corpus.keep: meta .*do not fit \(.*{why}"):
        as_known(pa.table({"meta": now}), {"meta": before})


#: Values of a column now, and another type of before that holds them.
HELD: dict[str, tuple[pa.Array, pa.DataType]] = {
    "midnight": (pa.array([MIDNIGHT, None]), pa.date32()),
    "days": (pa.array([DAY, None]), NAIVE),
    "another zone": (pa.array([TIME.replace(tzinfo=ZONE)], ZONED), UTC),
    "float32": (pa.array([0.5, None, NAN]), pa.float32()),
    "wider": (pa.array([0.1, None, NAN], pa.float32()), pa.float64()),
    "not a number in lists": (pa.array([[0.5, NAN], None]), pa.list_(pa.float32())),
    "decimals": (pa.array([decimal.Decimal("1.25")]), pa.decimal128(10, 4)),
    "numbers as texts": (pa.array([7, None]), pa.string()),
    "texts as numbers": (pa.array(["7", None]), pa.int64()),
    "days as texts": (pa.array([DAY]), pa.string()),
    "codes of midnight": (pa.array([MIDNIGHT]).dictionary_encode(), pa.date32()),
    "coded": (pa.array(["a", None]), pa.dictionary(pa.int8(), pa.string())),
    "seconds": (pa.array([datetime.timedelta(seconds=2)]), pa.duration("s")),
    "texts of times": (pa.array(["2024-01-01 10:00:00", None]), pa.timestamp("ms")),
    "texts of instants": (pa.array(["2024-01-01T10:00:00Z", None]), pa.timestamp("ms", "UTC")),
    "texts of another zone": (pa.array(["2024-01-01T12:00:00+02:00"]), UTC),
    "texts with more zeros": (pa.array(["2024-01-01 10:00:00.000000"]), pa.timestamp("ms")),
    "texts of midnight": (pa.array(["2024-01-01 00:00:00", "2024-01-01"]), pa.date32()),
    "texts of times of day": (pa.array(["10:00:00", "11:30:00.000"]), pa.time32("s")),
    "times of day as texts": (pa.array([datetime.time(10), None]), pa.string()),
    "durations as texts": (pa.array([datetime.timedelta(seconds=2), None]), pa.string()),
    "whole decimals": (pa.array([decimal.Decimal("1"), None], pa.decimal128(18, 0)), pa.int64()),
    "whole numbers as decimals": (pa.array([1, None]), pa.decimal128(5, 2)),
    "texts as floats": (pa.array(["1.0", "1.50", "1e3", "nan", None]), pa.float64()),
    "texts as decimals": (pa.array(["1.0", "1.50", "1", None]), pa.decimal128(5, 2)),
    "texts as whole numbers": (pa.array(["1.0", "2", None]), pa.int64()),
    "prices as floats": (pa.array([decimal.Decimal("1.10"), None]), pa.float32()),
    "floats as prices": (pa.array([1.1, None]), pa.decimal128(5, 2)),
    "large exact floats": (pa.array([2.0**60, None]), pa.int64()),
    "large whole numbers": (pa.array([2**60, None]), pa.float64()),
    "in maps": (
        pa.array([None, [("a", 2.0**60)], [], [("b", 1.0)]], pa.map_(pa.string(), pa.float64())),
        pa.map_(pa.string(), pa.int64()),
    ),
    "in objects in lists": (
        pa.array([[{"a": ["1.0"]}], None, [None, {"a": None}], []]),
        pa.list_(pa.struct({"a": pa.list_(pa.float32())})),
    ),
    "one length": (pa.array([[1, 2], None]), pa.list_(pa.int32(), 2)),
}


@pytest.mark.parametrize("name", HELD)
def test_values_that_a_type_holds_are_taken_in_it(name: str) -> None:
    now, before = HELD[name]
    chunks = pa.chunked_array([now.slice(0, 1), now.slice(1)])
    found = as_known(pa.table({"meta": chunks}), {"meta": before})["meta"]
    assert found.type == before
    pairs = zip(found.to_pylist(), now.to_pylist(), strict=True)
    assert all(is_equal(*pair, before, now.type) for pair in pairs)


def is_equal(one: Any, other: Any, kind: pa.DataType, given: pa.DataType) -> bool:
    """Tell whether Python's values are the same, or one is a text of the other; also those of parts."""
    if one is None or other is None:
        return one is other
    if isinstance(one, dict):
        parts = [(one[n], other[n], kind.field(n).type, given.field(n).type) for n in one]
        return one.keys() == other.keys() and all(is_equal(*part) for part in parts)
    if pa.types.is_map(kind):
        items = zip(one, other, strict=True)
        return all(
            a[0] == b[0] and is_equal(a[1], b[1], kind.item_type, given.item_type) for a, b in items
        )
    if isinstance(one, list):
        types = kind.value_type, given.value_type
        return len(one) == len(other) and all(
            is_equal(a, b, *types) for a, b in zip(one, other, strict=True)
        )
    if pa.types.is_decimal(kind) and pa.types.is_floating(given) and other == other:
        return bool(given.to_pandas_dtype()(one) == other)
    ones, others = (read(one), written(one, kind)), (read(other), written(other, given))
    return any(is_same_value(a, b) for a in ones for b in others)


def is_same_value(one: Any, other: Any) -> bool:
    one, other = (at_midnight(value) for value in (one, other))
    return one == other or (one != one and other != other)  # type: ignore[no-any-return]


def at_midnight(value: Any) -> Any:
    if type(value) is datetime.date:
        return datetime.datetime(value.year, value.month, value.day)
    return value


def written(value: Any, kind: pa.DataType) -> Any:
    """Return the value of the shortest text of a float; other values as they are."""
    return read(str(kind.to_pandas_dtype()(value))) if pa.types.is_floating(kind) else read(value)


def read(value: Any) -> Any:
    """Return the value that a text is of, if Python reads any."""
    for reader in READERS if isinstance(value, str) else ():
        with contextlib.suppress(ValueError, ArithmeticError):
            return reader(value)
    return value


def duration(text: str) -> datetime.timedelta:
    number, unit = text.split(" ")
    return int(number) * datetime.timedelta(**{UNITS[unit]: 1})


UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
#: What Python reads texts with.
READERS = (decimal.Decimal, datetime.time.fromisoformat, datetime.datetime.fromisoformat, duration)

#: Types, and values of which each holds some.
NUMBERS = pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()
DECIMALS = pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal256(60, 20)
TIMES = pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ms"), NAIVE, ZONED, UTC
PARTS = pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.duration("s"), pa.duration("us")
OTHERS = pa.string(), pa.large_string(), pa.bool_(), pa.binary(), pa.binary(2)
KINDS = [*NUMBERS, *DECIMALS, *TIMES, *PARTS, *OTHERS]
WHOLE = 0, 1, 100, 300, -1, 2**53 + 1, 2**60, 2**63 - 1, 2**64 - 1
FLOATS = 0.5, 0.1, 1.1, 2.0**53, 2.0**63, 2.0**64, 1e30, NAN, float("inf")
EXACT = [decimal.Decimal(text) for text in ("1.10", "0.125", str(2**60))]
TEXTS = "1", "1.0", "1.50", "07", "0.1", "1e3", "a", "", "10:00:00", "10:00:00.5", "2024-01-01"
DAYS = [f"2024-01-01 {text}" for text in ("00:00:00", "17:30:00", "10:00:00Z", "10:00:00.000000")]
CLOCK = DAY, TIME, MIDNIGHT, TIME.replace(tzinfo=ZONE), datetime.time(10), datetime.time(0, 0, 0, 9)
VALUES = [*WHOLE, *FLOATS, *EXACT, *TEXTS, *DAYS, *CLOCK, 2 * LATER, LATER, True, b"ab", b"abc"]


def arrays() -> Iterator[pa.Array]:
    """Yield each value in each type that Arrow makes of it."""
    for kind in KINDS:
        for value in VALUES:
            with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
                array = pa.array([value], kind)
                if is_equal(array[0].as_py(), value, kind, pa.scalar(value).type):
                    yield array


def has_value(value: Any, given: pa.DataType, kind: pa.DataType) -> bool:
    """Tell whether a type has Python's value, of a type that may be the same."""
    if unlike(given, kind) is not None:
        return False
    try:
        return is_same_value(pa.array([value], kind)[0].as_py(), value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False


@pytest.mark.parametrize("before", KINDS, ids=str)
def test_what_is_taken_has_the_same_value_and_what_has_the_same_value_is_taken(
    before: pa.DataType,
) -> None:
    for now in arrays():
        value, (found, why) = now[0].as_py(), taken(now, before)
        if found is None:
            assert not has_value(value, now.type, before), why
            assert re.search(
                r"do not fit \(.*( would become | does not fit | not the same values)", why
            )
            assert not re.search("Unsupported|[Pp]recision|parse|Cast", why)
        else:
            assert is_equal(found[0].as_py(), value, before, now.type), (now, found)


def taken(now: pa.Array, before: pa.DataType) -> tuple[pa.ChunkedArray | None, str]:
    """Return a column in its type of before, or None and what is said."""
    try:
        return as_known(pa.table({"meta": now}), {"meta": before})["meta"], ""
    except CorpusError as error:
        return None, str(error)


def test_values_per_frame_that_a_type_does_not_hold_are_refused() -> None:
    def of(values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
        return struct_of({"a": pa.chunked_array([pa.array([values], pa.list_(kind))])})

    before = of([0.5], pa.float32()).type
    held = as_known(pa.table({PER_FRAME: of([0.5, 2.0], pa.float64())}), {PER_FRAME: before})
    assert held.schema.field(PER_FRAME).type == before
    with pytest.raises(CorpusError, match="would become"):
        as_known(pa.table({PER_FRAME: of([0.5, 0.1], pa.float64())}), {PER_FRAME: before})
