"""Conditions as text: what they keep, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.errors import ConfigError
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.loader.where_text import MAX_CHARACTERS, parse_where
from tests.tools.planned import make_cache

TABLE = pa.table(
    {
        "n": [1, 2, None, 4],
        "s": ["x", "ay", "a'b", None],
        "f": [0.5, -1.5, 2.0, 3.0],
        "a b": [True, False, True, True],
    }
)


def kept(text: str) -> list[int]:
    """The rows that a condition keeps."""
    numbered = TABLE.append_column("#", pa.array(range(4)))
    return numbered.filter(parse_where(text))["#"].to_pylist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n > 1", [1, 3]),
        ("n >= 2 AND n < 4", [1]),
        ("n = 1 or s like 'a%'", [0, 1, 2]),
        ("n == 1 or n <> 1", [0, 1, 3]),
        ("s = 'x' or n = 2 and f < 0", [0, 1]),
        ("(s = 'x' or n = 2) and f < 0", [1]),
        ("not n > 1", [0]),
        ("not not n > 1", [1, 3]),
        ("not (n = 1 or n = 2)", [3]),
        ("n in (1, 4)", [0, 3]),
        ("n not in (1, 4)", [1]),
        ("not n in (1, 4)", [1]),
        ("n in (1.0, 2)", [0, 1]),
        ("f in (-1.5, 3.0)", [1, 3]),
        ("s in ('x', 'a''b')", [0, 2]),
        ("s is null", [3]),
        ("n is not null and s is not null", [0, 1]),
        ("s not like '_y'", [0, 2]),
        ("-f > 1", [1]),
        ("--f > 1", [2, 3]),
        ("-1 > f", [1]),
        ("f - 1 > 0", [2, 3]),
        ("f-1 > 0", [2, 3]),
        ("n + 1 * 2 = 4", [1]),
        ("(n + 1) * 2 = 4", [0]),
        ("n - 1 - 1 = 2", [3]),
        ("f / 2 <= 0.25", [0, 1]),
        ("f < 1e0 and f > -.6", [0]),
        ('"a b"', [0, 2, 3]),
        ('"a b" = false', [1]),
        ("true", [0, 1, 2, 3]),
        ("1 < n", [1, 3]),
    ],
)
def test_a_condition_keeps_the_rows_of_which_it_is_true(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "a column, a value or ( should be here: >>>"),
        ("n >", "a column, a value or ( should be here: n >>>>"),
        ("n > 1 s", "the condition should end here: n > 1 >>>s"),
        ("n = 1 = 1", "the condition should end here: n = 1 >>>= 1"),
        ("s like 3", "a value should be here; text is in single quotes: s like >>>3"),
        ("n in ()", "a value should be here"),
        ("n in (1, 'x')", "of one kind"),
        ("((n = 1)", r") should be here: ((n = 1)>>>"),
        ("n ; 1", "this cannot be read: n>>> ; 1"),
        ("s = 'x", "this cannot be read: s =>>> 'x"),
        ("n is 3", "null should be here: n is >>>3"),
        ("n not > 3", "in or like should follow `not` here"),
        ("(" * 1000 + "n" + ")" * 1000, "nested too deeply"),
        ("n = " + "1" * MAX_CHARACTERS, "characters are more than"),
        ("__import__('os')", "the condition should end here: __import__>>>('os')"),
    ],
)
def test_text_that_is_no_condition_is_refused_at_its_place(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_where(text)
    assert what in str(error.value)


@given(st.text(alphabet="ns f1.'\"()=<>!+-*/,%_andorilkeu", max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        parse_where(text)
    except ConfigError:
        pass
    except pa.ArrowException as error:  # such as a sum of a column and text
        pytest.fail(f"{text!r}: {error}")


def test_long_chains_do_not_end_the_process() -> None:
    assert kept(" or ".join(["n = 1"] * 200)) == [0]
    assert kept(f"n in ({', '.join(map(str, range(2, 9000)))})") == [1, 3]
    for text in (" or ".join(["n = 1"] * 9000), "+".join(["n"] * 9000)):
        with pytest.raises(ConfigError, match="more than 1000 operations"):
            parse_where(text)
    assert kept("-" * 1000 + "1 = 1") == [0, 1, 2, 3]


def test_a_loader_takes_text(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    found = LatentLoader(
        cache.storage.url, batch_size=1, where="source in ('v1', 'v2') or caption like '%7'"
    )
    assert sorted(key for batch in found for key in batch["key"]) == ["v1#0", "v2#0", "v7#0"]
    wrong = "source > 1"
    with pytest.raises(ConfigError, match=r"where: .*source > 1.* cannot be evaluated"):
        LatentLoader(cache.storage.url, batch_size=1, where=wrong)
