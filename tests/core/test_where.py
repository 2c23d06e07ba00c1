"""Conditions as text: what each keeps, and what is said of those that make no sense."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core.where import MAX_DEPTH, parse_where
from latentcache.core.where_tokens import MAX_OPERATORS
from latentcache.errors import ConfigError

COMPUTED = {"duration_s": "end_s - start_s"}
CAPTIONS = ["a dog", "", None, "A CAT, 50%"]
TABLE = pa.table(
    {
        "key": ["a", "b", "it's", "d"],
        "n": pa.array([1, 2, None, 4], pa.int32()),
        "f": [0.5, None, 2.5, float("nan")],
        "u": pa.array([1, 2, 3, 4], pa.uint32()),
        "money": pa.array([Decimal("1.50"), Decimal("2.50"), None, Decimal("9.00")]),
        "caption": CAPTIONS,
        "good": [True, None, False, True],
        "made": [dt.datetime(2020, 1, day) for day in (1, 2, 3, 4)],
        "day": [dt.date(2020, 1, day) for day in (1, 2, 3, 4)],
        "start_s": [0.0, 1.0, 2.0, 3.0],
        "end_s": [1.0, 4.0, 9.0, None],
        "odd-name": [1, 2, 3, 4],
        "null": [1, 2, 3, 4],
        "camera": pa.array(["x", "y", "x", None]).dictionary_encode(),
        "tags": [[1], [2], [], None],
    }
)
ROWS = TABLE.to_pylist()


def kept(text: str) -> list[str]:
    return TABLE.filter(parse_where(text, TABLE.schema, COMPUTED))["key"].to_pylist()


def known(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(row[name] is not None for name in names)


CASES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("n > 1", lambda r: r["n"] and r["n"] > 1),
    ("n >= 2 and n <= 3", lambda r: r["n"] == 2),
    ("2 < n", lambda r: r["n"] and r["n"] > 2),
    ("n = 2", lambda r: r["n"] == 2),
    ("n == 2", lambda r: r["n"] == 2),
    ("n <> 2", lambda r: r["n"] and r["n"] != 2),
    ("n != 2", lambda r: r["n"] and r["n"] != 2),
    ("not n = 2", lambda r: r["n"] and r["n"] != 2),
    ("n > - 2", known("n")),
    ("-n < -1", lambda r: r["n"] and r["n"] > 1),
    ("u > -1", lambda r: True),
    ("f > 1e-1", lambda r: r["f"] and r["f"] > 0.1),
    ("n < u", lambda r: r["n"] and r["n"] < r["u"]),
    ("money > 1.5", lambda r: r["money"] and r["money"] > Decimal("1.5")),
    ("money in (1.5, 9)", lambda r: r["money"] in (Decimal("1.5"), Decimal(9))),
    ("caption != ''", lambda r: r["caption"]),
    ("caption == 'a dog'", lambda r: r["caption"] == "a dog"),
    ('caption = "a dog"', lambda r: r["caption"] == "a dog"),
    ("key = 'it''s'", lambda r: r["key"] == "it's"),
    ('key = "it\'s"', lambda r: r["key"] == "it's"),
    ("n in (1, 4)", lambda r: r["n"] in (1, 4)),
    ("n not in (1, 4)", lambda r: r["n"] == 2),
    ("not n in (1, 4)", lambda r: r["n"] == 2),
    ("f in (1, 0.5)", lambda r: r["f"] == 0.5),
    ("good in (true)", lambda r: r["good"]),
    ("caption like 'a %'", lambda r: r["caption"] == CAPTIONS[0]),
    ("caption like 'a_dog'", lambda r: r["caption"] == CAPTIONS[0]),
    ("caption ilike '%cat%'", lambda r: r["caption"] == CAPTIONS[3]),
    ("caption contains '%'", lambda r: r["caption"] == CAPTIONS[3]),
    ("caption not contains '%'", lambda r: r["caption"] in CAPTIONS[:2]),
    ("caption is null", lambda r: r["caption"] is None),
    ("caption is not null", known("caption")),
    ("tags is null", lambda r: r["tags"] is None),
    ("good", lambda r: r["good"]),
    ("not good", lambda r: r["good"] is False),
    ("good = false", lambda r: r["good"] is False),
    ("made > '2020-01-02'", lambda r: r["made"].day > 2),
    ("made <= '2020-01-02 00:00:00'", lambda r: r["made"].day <= 2),
    ("day in ('2020-01-02')", lambda r: r["day"].day == 2),
    ("`odd-name` > 2", lambda r: r["odd-name"] > 2),
    ("`null` = 3", lambda r: r["null"] == 3),
    ("camera = 'x'", lambda r: r["camera"] == "x"),
    ("camera in ('y')", lambda r: r["camera"] == "y"),
    ("camera like 'x'", lambda r: r["camera"] == "x"),
    ("duration_s > 2 and caption != ''", lambda r: False),
    ("duration_s > 2", lambda r: r["end_s"] and r["end_s"] - r["start_s"] > 2),
    ("duration_s is null", lambda r: r["end_s"] is None),
    ("(end_s - start_s) / 2 > 1.5", lambda r: r["end_s"] and (r["end_s"] - r["start_s"]) / 2 > 1.5),
    ("start_s + 2 * u > 5", lambda r: r["start_s"] + 2 * r["u"] > 5),
    ("n / 2 = 0.5", lambda r: r["n"] == 1),
    ("n / 0 > 1", known("n")),
    ("good or n = 2 and u = 3", lambda r: r["good"]),
    ("(good or n = 2) and u = 2", lambda r: r["n"] == 2),
    ("NOT good OR n IS NULL", lambda r: r["good"] is False or r["n"] is None),
    ("((((n > 1))))", lambda r: r["n"] and r["n"] > 1),
    ("\n n\t>\n1 ", lambda r: r["n"] and r["n"] > 1),
]


@pytest.mark.parametrize(("text", "keeps"), CASES, ids=[text for text, _ in CASES])
def test_a_condition_keeps_the_rows_that_it_describes(
    text: str, keeps: Callable[[dict[str, Any]], Any]
) -> None:
    assert kept(text) == [row["key"] for row in ROWS if keeps(row)]


def test_a_column_comes_before_what_is_computed_under_its_name() -> None:
    table = pa.table({"duration_s": [1.0, 3.0], "start_s": [0.0, 0.0], "end_s": [9.0, 9.0]})
    found = table.filter(parse_where("duration_s > 2", table.schema, COMPUTED))
    assert found["duration_s"].to_pylist() == [3.0]


WRONG = [
    ("captoin = 'x'", "there is no column 'captoin'. Did you mean 'caption'?"),
    ("duration > 1", "Did you mean 'duration_s'?"),
    ("n > 'x'", "n is a number and 'x' is text: these do not compare"),
    ("caption > 5", "caption is text and 5 is a number"),
    ("caption + 1 > 5", "'+' calculates with numbers; caption is text"),
    ("-caption > 5", "'-' calculates with numbers; caption is text"),
    ("tags = 1", "tags is list"),
    ("'caption' != ''", "compares two constants: name a column, without quotes"),
    ("1 < 2", "compares two constants"),
    ("n", "n is a number and no condition"),
    ("true", "no condition"),
    ("good and 1", "1 is a number and no condition"),
    ("1 < n < 3", "join them with 'and'"),
    ("n > 1 && good", "&& is no part of a condition: write 'and'"),
    ("n > 1 | good", "write 'or'"),
    ("!good", "write 'not'"),
    ("n > 1 n", "expected 'and' or 'or', got n (character 7 of"),
    ("n between 1 and 2", "expected a comparison of n, got between"),
    ("", "there is no condition"),
    (" \n", "there is no condition"),
    ("n >", "expected a column or a value, got the end"),
    ("n not 5", "after 'not'"),
    ("(n > 1", "expected ')', got the end"),
    ("n > 1)", "expected 'and' or 'or', got )"),
    ("n = null", "write 'is null'"),
    ("n is 5", "expected 'null', got 5"),
    ("n in ()", "expected a column or a value"),
    ("n in (null)", "expected a column or a value"),
    ("n in (u)", "expected a constant"),
    ("n in (1, 2", "expected ')'"),
    ("n in (2.5)", "n holds int32, which 2.5 does not fit"),
    ("u in (-1)", "u holds uint32, which -1 does not fit"),
    ("key in ('a', 1)", "key holds string, which 'a', 1 does not fit"),
    ("1 in (1)", "expected a column on the left"),
    ("caption like 5", "looks for a quoted text"),
    ("n like 'x'", "n is a number"),
    ("made > 'yesterday'", "made holds timestamp"),
    ("n = 99999999999999999999", "beyond the numbers that columns hold"),
    ("n > 1e400", "beyond the numbers"),
    ("caption = 'x", "its closing quote is missing"),
    ("x.y = 1", "stands in `backticks`"),
    ("lambda row: row", "no part of a condition"),
    ("(" * (MAX_DEPTH + 1) + "good" + ")" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} levels"),
    ("not " * (MAX_DEPTH + 1) + "good", f"more than {MAX_DEPTH} levels"),
    ("- " * (MAX_DEPTH + 2) + "n > 1", f"more than {MAX_DEPTH} levels"),
    (" or ".join(["n = 1"] * (MAX_OPERATORS + 2)), "write long lists as column in"),
    (" + ".join(["n"] * (MAX_OPERATORS + 2)) + " > 1", f"more than {MAX_OPERATORS} operators"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text[:30] for text, _ in WRONG])
def test_a_condition_that_makes_no_sense_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        parse_where(text, TABLE.schema, COMPUTED)
    assert "\n" not in str(caught.value).replace(text, "")


def test_as_many_operators_as_are_allowed_can_be_evaluated() -> None:
    assert kept(" or ".join(["n = 1"] * MAX_OPERATORS)) == ["a"]
    assert kept(" + ".join(["0"] * (MAX_OPERATORS - 1)) + " + n = 1") == ["a"]


@given(
    st.lists(
        st.sampled_from(
            [
                "n",
                ">",
                "1",
                "and",
                "or",
                "not",
                "(",
                ")",
                "in",
                ",",
                "'a'",
                "caption",
                "is",
                "null",
                "like",
                "-",
                "good",
                "=",
                "2",
            ]
        )
    )
)
def test_any_sequence_of_tokens_is_a_condition_or_is_refused(words: list[str]) -> None:
    try:
        expression = parse_where(" ".join(words), TABLE.schema)
    except ConfigError:
        return
    TABLE.filter(expression)  # what the parser lets through can be evaluated


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_is_refused(text: str) -> None:
    try:
        parse_where(text, TABLE.schema)
    except ConfigError as error:
        assert str(error).startswith("where: ")  # noqa: PT017 - most texts raise, not all
