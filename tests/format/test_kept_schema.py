"""What a generation says of its kept columns: names and types as Arrow has them, without a table."""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa
import pytest

from latentcache.format.kept_schema import kept_schema, kept_text, united
from latentcache.format.schemas import PLAN_SCHEMA

KEPT = pa.schema(
    [
        ("score", pa.float64()),
        ("made", pa.timestamp("ns", "UTC")),
        ("tags", pa.list_(pa.struct([("name", pa.string()), ("at", pa.int8())]))),
        (
            "per_frame",
            pa.struct([("frame", pa.list_(pa.int32())), ("pose", pa.list_(pa.float32()))]),
        ),
    ]
)


def test_names_and_types_come_back_without_the_plans_own() -> None:
    changed = pa.schema(
        [PLAN_SCHEMA.field("row"), PLAN_SCHEMA.field("caption"), KEPT.field("made")]
    )
    text = kept_text([pa.schema([*PLAN_SCHEMA, *KEPT]), changed])
    assert kept_schema(text).equals(KEPT)
    assert kept_schema(kept_text([])).names == []


def schema_text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode()


@pytest.mark.parametrize(
    "text",
    ["", "no base64", base64.b64encode(b"no schema").decode(), schema_text(PLAN_SCHEMA)],
)
def test_what_is_no_schema_of_kept_columns_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^its kept columns "):
        kept_schema(text)


def test_a_schema_has_the_columns_of_all_and_floats_where_some_have_them() -> None:
    one = pa.schema([("key", pa.string()), ("score", pa.int64()), ("odd", pa.string())])
    more: Any = pa.struct([("at", pa.list_(pa.int64())), ("pose", pa.list_(pa.float32()))])
    other = pa.schema([("score", pa.float64()), ("odd", pa.int64()), ("per_frame", more)])
    found = united([one, other, pa.schema([("late", pa.bool_())])])
    assert found.names == ["key", "score", "odd", "per_frame", "late"]
    assert found.types == [pa.string(), pa.float64(), pa.string(), more, pa.bool_()]
