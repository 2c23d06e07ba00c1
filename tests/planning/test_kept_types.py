"""Kept columns take the types that a cache has for them if these hold every value, or are refused."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest

from latentcache.core.columns import decoded
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
    "leading zeros": (pa.array(["07"]), pa.int64(), "'07' would become '7'"),
    "zone of none": (pa.array([TIME]), UTC, "are not the same values"),
    "none of a zone": (pa.array([TIME], UTC), NAIVE, "are not the same values"),
    "day as instant": (pa.array([DAY]), UTC, "are not the same values"),
    "texts as bytes": (pa.array(["a"]), pa.binary(), "are not the same values"),
    "bytes as texts": (pa.array([b"a"]), pa.string(), "are not the same values"),
    "numbers as times": (pa.array([5]), NAIVE, "are not the same values"),
    "times as numbers": (pa.array([TIME]), pa.int64(), "are not the same values"),
    "numbers as durations": (pa.array([5]), pa.duration("s"), "are not the same values"),
    "only the time of day": (pa.array([TIME]), pa.time64("us"), "are not the same values"),
    "parts of seconds": (pa.array([LATER]), pa.duration("s"), "would lose data"),
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
    "one length": (pa.array([[1, 2], None]), pa.list_(pa.int32(), 2)),
}


@pytest.mark.parametrize("name", HELD)
def test_values_that_a_type_holds_are_taken_in_it(name: str) -> None:
    now, before = HELD[name]
    chunks = pa.chunked_array([now.slice(0, 1), now.slice(1)])
    found = as_known(pa.table({"meta": chunks}), {"meta": before})["meta"]
    assert found.type == before
    assert repr(found.cast(decoded(now.type)).to_pylist()) == repr(now.to_pylist())


def test_values_per_frame_that_a_type_does_not_hold_are_refused() -> None:
    def of(values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
        return struct_of({"a": pa.chunked_array([pa.array([values], pa.list_(kind))])})

    before = of([0.5], pa.float32()).type
    held = as_known(pa.table({PER_FRAME: of([0.5, 2.0], pa.float64())}), {PER_FRAME: before})
    assert held.schema.field(PER_FRAME).type == before
    with pytest.raises(CorpusError, match="would become"):
        as_known(pa.table({PER_FRAME: of([0.5, 0.1], pa.float64())}), {PER_FRAME: before})
