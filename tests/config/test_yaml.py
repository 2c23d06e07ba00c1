"""YAML of configurations: what is text and what is not, and what is refused in one line."""

from __future__ import annotations

import pytest

from latentcache.config.yaml import parse_yaml
from latentcache.errors import ConfigError


@pytest.mark.parametrize(
    "word", ["true_videos", "falsework/x", "True Detective", "Falsch", "TRUE2", "truefalse"]
)
def test_text_that_begins_with_a_boolean_is_text(word: str) -> None:
    assert parse_yaml(f"{word}: {word}") == {word: word}
    assert parse_yaml(f"[{word}, true]") == [word, True]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("!!bool maybe", "bool"),
        ("!!int ''", "int"),
        ("!!int foo", "int"),
        ("!!float x", "float"),
        ("!!timestamp foo", "timestamp"),
        ("!!timestamp 2024-99-99", "timestamp"),
        ("9" * 5000, "int"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused_with_its_place(
    value: str, name: str
) -> None:
    says = rf"the value does not fit its type, {name} \(line 2, column 4\)$"
    with pytest.raises(ConfigError, match=says):
        parse_yaml(f"b: 1\na: {value}")


@pytest.mark.parametrize("value", ["!!map [[1, 2]]", "!!map x", "!!seq {a: 1}", "!!bool [1]"])
def test_a_value_of_another_kind_than_its_tag_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a \w+( node)?.* \(line 1, column 4\)$"):
        parse_yaml(f"a: {value}")


@pytest.mark.parametrize(
    "text",
    [
        "x: {y: {mid: &mid {<<: &b {a: 1}, a: 2}}}\ntop: {<<: *mid}",
        "x: {mid: &mid {<<: {a: 1}, a: 2}}\n<<: *mid",
        "x: {mid: &mid {<<: {a: 1}, a: 2}}\ntop: [{<<: [*mid, *mid]}, *mid]",
    ],
)
def test_a_merged_key_may_be_given_again_wherever_it_is_merged(text: str) -> None:
    found = parse_yaml(text)
    assert found.pop("x") in ({"y": {"mid": {"a": 2}}}, {"mid": {"a": 2}})
    assert found in ({"top": {"a": 2}}, {"a": 2}, {"top": [{"a": 2}, {"a": 2}]})


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "x: {a: 1, a: 2}", "<<: {a: 1, a: 2}", "- {a: 1, 'a': 2}"]
)
def test_a_key_that_is_given_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the key 'a' is given twice"):
        parse_yaml(text)


def test_own_keys_count_most_and_then_those_of_the_first_that_is_merged() -> None:
    both = "{<<: [{key: 1, other: 1}, {key: 2, third: 2}], third: 3}"
    assert parse_yaml(f"a: {both}") == {"a": {"key": 1, "other": 1, "third": 3}}
    assert parse_yaml("{b: 1, <<: {c: 2, b: 2}, 1: x}") == {"c": 2, "b": 1, 1: "x"}


@pytest.mark.parametrize("text", ["a: {<<: 1}", "a: {<<: [{b: 1}, text]}"])
def test_only_sections_are_merged(text: str) -> None:
    with pytest.raises(ConfigError, match=r"`<<` takes sections with keys \(line 1, column \d+\)"):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    ["a: &x [*x]", "a: &x {b: {c: *x}}", "a: &x {<<: *x}", "a: &x {<<: [{<<: *x}]}", "&x {*x : 1}"],
)
def test_an_alias_within_what_it_stands_for_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\*x is within what it stands for \(line 1, column \d"):
        parse_yaml(text)


def test_an_alias_beside_its_anchor_is_a_copy() -> None:
    assert parse_yaml("a: &x [1]\nb: [*x, *x, {c: *x}]") == {"a": [1], "b": [[1], [1], {"c": [1]}]}
