"""Conditions on clips as text, such as `frames >= 49 and caption != ''`, made into an Arrow expression.

    condition : condition "or" condition | condition "and" condition | "not" condition
              | "(" condition ")" | column of truth values
              | value ("=" | "!=" | "<" | "<=" | ">" | ">=") value
              | column ["not"] "in" "(" constant "," ... ")"
              | column ["not"] ("like" | "ilike" | "contains") 'text'
              | column "is" ["not"] "null"
    value     : column | constant | value ("+" | "-" | "*" | "/") value | "-" value | "(" value ")"
    constant  : 12, 1.5e3, 'text', "text", true, false

`==` is `=`, and `<>` is `!=`. `like` knows `%` and `_`; `ilike` ignores case. A quote within quotes is
doubled. A column whose name is no plain word stands in backticks. The grammar's own words may be upper
case. Null compares as in SQL: neither a comparison with it nor its opposite holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.where_tokens import Token, tokens_of, wrong
from latentcache.errors import ConfigError, did_you_mean

#: Levels of parentheses and 'not'.
MAX_DEPTH = 50
_Function = Callable[[Any, Any], Any]
_COMPARISONS: dict[str, _Function] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SUMS: dict[str, _Function] = {"+": operator.add, "-": operator.sub}
#: Arrow's division of whole numbers would cut off the fraction, and fail at 0.
_PRODUCTS: dict[str, _Function] = {
    "*": operator.mul,
    "/": lambda a, b: pc.divide(a.cast(pa.float64()), b.cast(pa.float64())),
}
_COMPARABLE = ("a number", "text", "a truth value", "a time")


@dataclass(frozen=True, kw_only=True)
class _Term:
    """A parsed part. kind: of _COMPARABLE, or a condition; else the name of an Arrow type."""

    expression: pc.Expression
    kind: str
    text: str
    type: pa.DataType | None = None  # of a column
    constant: Any = None


def parse_where(
    text: str, schema: pa.Schema, computed: Mapping[str, str] | None = None
) -> pc.Expression:
    """Return the expression that a text describes, for tables of this schema.

    computed: values that may be named like columns, as texts: {"duration_s": "end_s - start_s"}; the
    schema's columns come first. Raises ConfigError, which names the place in the text.
    """
    return _Parser(text, schema, computed or {}).whole_condition().expression


class _Parser:
    """Recursive descent: a method per level of the grammar, from the operator that binds least."""

    def __init__(self, text: str, schema: pa.Schema, computed: Mapping[str, str]) -> None:
        self._text, self._schema, self._computed = text, schema, computed
        self._at = self._depth = 0
        self._tokens = tokens_of(text)

    def whole_condition(self) -> _Term:
        condition = self._condition(self._or(), self._tokens[0])
        self._expect_end("'and' or 'or'")
        return condition

    def whole_value(self) -> _Term:
        value = self._sum()
        self._expect_end("an operator")
        return value

    # Conditions

    def _or(self) -> _Term:
        return self._joined("or", operator.or_, self._and)

    def _and(self) -> _Term:
        return self._joined("and", operator.and_, self._not)

    def _joined(self, word: str, function: _Function, part: Callable[[], _Term]) -> _Term:
        start = self._next
        parts = [part()]
        while self._take(word):
            parts[-1] = self._condition(parts[-1], start)
            start = self._next
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        parts[-1] = self._condition(parts[-1], start)
        return _made(_balanced(function, [term.expression for term in parts]))

    def _not(self) -> _Term:
        if not self._take("not"):
            return self._comparison()
        start = self._next
        return _made(~self._condition(self._deeper(self._not), start).expression)

    def _comparison(self) -> _Term:
        start, left = self._next, self._sum()
        term = self._compared(left, start)
        if term is not left and (self._next_is(*_COMPARISONS, "is")):
            raise self._wrong(
                "a comparison of a comparison: join them with 'and', as in 2 < a and a < 5"
            )
        return term

    def _compared(self, left: _Term, start: Token) -> _Term:
        """Return the comparison that follows `left`, or `left` itself if none does."""
        if self._next_is(*_COMPARISONS):
            return self._pair(left, self._take_any(), start)
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            null = self._column(left, start).expression.is_null()
            return _made(~null if negated else null)
        negated = self._take("not")
        if self._next_is("in", "like", "ilike", "contains"):
            word, column = self._take_any(), self._column(left, start)
            found = self._in(column) if word == "in" else self._like(column, word)
            return _made(~found if negated else found)
        if negated:
            raise self._wrong("expected 'in', 'like', 'ilike' or 'contains' after 'not'")
        return left

    def _pair(self, left: _Term, sign: str, start: Token) -> _Term:
        if self._next_is("null"):
            raise self._wrong("nothing equals null: write 'is null' or 'is not null'")
        right = self._sum()
        if left.constant is not None and right.constant is not None:
            raise self._wrong(
                f"{left.text} {sign} {right.text} compares two constants: name a column"
                + ("" if left.kind != "text" else ", without quotes"),
                start,
            )
        left, right = self._as_time(left, right), self._as_time(right, left)
        if left.kind != right.kind or left.kind not in _COMPARABLE:
            raise self._wrong(
                f"{left.text} is {left.kind} and {right.text} is {right.kind}: these do not compare",
                start,
            )
        return _made(_COMPARISONS[sign](left.expression, right.expression))

    def _as_time(self, term: _Term, other: _Term) -> _Term:
        """Return the constant text that is compared with a column of times as a time."""
        if not (isinstance(term.constant, str) and other.kind == "a time"):
            return term
        value = self._values([term.constant], other)[0]
        return _Term(expression=pc.scalar(value), kind="a time", text=term.text)

    def _in(self, column: _Term) -> pc.Expression:
        self._expect("(")
        constants = [self._constant()]
        while self._take(","):
            constants.append(self._constant())
        self._expect(")")
        found = column.expression.isin(self._values(constants, column))
        null = pa.scalar(None, pa.bool_())
        return pc.if_else(column.expression.is_valid(), found, null)

    def _constant(self) -> Any:
        term = self._sum()
        if term.constant is None:
            raise self._wrong(
                "expected a constant such as 12 or 'text' in the list", self._tokens[self._at - 1]
            )
        return term.constant

    def _values(self, constants: Sequence[Any], column: _Term) -> pa.Array:
        """Return constants in the type of a column."""
        kinds = {_CONSTANTS[type(constant)] for constant in constants}
        if kinds == {column.kind} or (kinds == {"text"} and column.kind == "a time"):
            try:
                return pa.array(constants).cast(column.type)
            except (pa.ArrowException, OverflowError):
                kinds = set()
        said = ", ".join(map(repr, constants[:3])) + (", ..." if constants[3:] else "")
        raise self._wrong(
            f"{column.text} holds {column.type}, which {said} does not fit", self._last
        )

    def _like(self, column: _Term, word: str) -> pc.Expression:
        start, pattern = self._next, self._sum()
        if column.kind != "text" or not isinstance(pattern.constant, str):
            raise self._wrong(
                f"'{word}' looks for a quoted text in a column of texts; {column.text} is "
                f"{column.kind}, and {pattern.text} is {pattern.kind}",
                start,
            )
        texts = column.expression.cast(pa.string())
        if word == "contains":
            return pc.match_substring(texts, pattern.constant)
        return pc.match_like(texts, pattern.constant, ignore_case=word == "ilike")

    # Values

    def _sum(self) -> _Term:
        return self._calculated(_SUMS, self._product)

    def _product(self) -> _Term:
        return self._calculated(_PRODUCTS, self._atom)

    def _calculated(self, functions: Mapping[str, _Function], part: Callable[[], _Term]) -> _Term:
        start, left = self._next, part()
        while self._next_is(*functions):
            sign = self._take_any()
            right = part()
            for term in (left, right):
                if term.kind != "a number":
                    raise self._wrong(
                        f"'{sign}' calculates with numbers; {term.text} is {term.kind}", start
                    )
            left = _Term(
                expression=functions[sign](left.expression, right.expression),
                kind="a number",
                text=f"{left.text} {sign} {right.text}",
            )
        return left

    def _atom(self) -> _Term:
        start, token = self._next, self._next
        if token.kind == "name":
            return self._named(self._take_any(), token)
        if token.kind == "text":
            quote = self._take_any()[0]
            return _constant_term(token.text[1:-1].replace(2 * quote, quote), token.text)
        if token.kind == "number":
            self._take_any()
            return self._number(token, 1)
        if self._next_is("true", "false"):
            return _constant_term(self._take_any() == "true", token.text)
        if self._take("-"):
            return self._negative(start)
        if self._take("("):
            inner = self._deeper(self._or)
            self._expect(")")
            return inner
        raise self._wrong(f"expected a column or a value, got {_shown(token)}")

    def _number(self, token: Token, sign: int) -> _Term:
        value = float(token.text) if set(token.text) & set(".eE") else int(token.text)
        if not -(2**63) <= value < 2**63:
            raise self._wrong(f"{token.text} is beyond the numbers that columns hold", token)
        return _constant_term(sign * value, ("-" if sign < 0 else "") + token.text)

    def _negative(self, start: Token) -> _Term:
        if self._next.kind == "number":
            token = self._next
            self._take_any()
            return self._number(token, -1)
        term = self._deeper(self._atom)
        if term.kind != "a number":
            raise self._wrong(f"'-' calculates with numbers; {term.text} is {term.kind}", start)
        return _Term(expression=pc.negate(term.expression), kind="a number", text=f"-{term.text}")

    def _named(self, name: str, token: Token) -> _Term:
        if name in self._schema.names:
            stored = self._schema.field(name).type
            type_, field = _plain(stored), pc.field((name,))
            field = field if type_ == stored else field.cast(type_)
            return _Term(expression=field, kind=_kind(type_), text=name, type=type_)
        if name in self._computed:
            inner = _Parser(self._computed[name], self._schema, {}).whole_value()
            return _Term(expression=inner.expression, kind=inner.kind, text=name, type=pa.float64())
        known = [*self._schema.names, *self._computed]
        raise self._wrong(
            f"there is no column {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}",
            token,
        )

    # Tokens, and what is wrong with them

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    @property
    def _last(self) -> Token:
        return self._tokens[self._at - 1]

    def _next_is(self, *texts: str) -> bool:
        """Return whether the next token is one of these words or signs."""
        return self._next.kind in ("word", "sign") and self._next.text in texts

    def _take_any(self) -> str:
        self._at += 1
        return self._last.text

    def _take(self, text: str) -> bool:
        """Go past the next token, and say so, if it is this word or sign."""
        found = self._next_is(text)
        self._at += found
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._wrong(f"expected '{text}', got {_shown(self._next)}")

    def _expect_end(self, expected: str) -> None:
        if self._next.kind != "end":
            raise self._wrong(f"expected {expected}, got {_shown(self._next)}")

    def _deeper(self, part: Callable[[], _Term]) -> _Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"more than {MAX_DEPTH} levels of parentheses and 'not'")
        term = part()
        self._depth -= 1
        return term

    def _condition(self, term: _Term, start: Token) -> _Term:
        """Return what must be a condition; a column of truth values is one."""
        if term.kind == "a truth value" and term.constant is None:
            return _made(term.expression)
        if term.kind != "a condition" and self._next.kind == "name":
            raise self._wrong(f"expected a comparison of {term.text}, got {self._next.text}")
        if term.kind != "a condition":
            raise self._wrong(
                f"{term.text} is {term.kind} and no condition: compare it with a value", start
            )
        return term

    def _column(self, term: _Term, start: Token) -> _Term:
        if term.type is None:
            raise self._wrong("expected a column on the left", start)
        return term

    def _wrong(self, said: str, token: Token | None = None) -> ConfigError:
        return wrong(self._text, said, (token or self._next).start)


_CONSTANTS = {bool: "a truth value", int: "a number", float: "a number", str: "text"}


def _constant_term(value: Any, text: str) -> _Term:
    kind = _CONSTANTS[type(value)]
    return _Term(expression=pc.scalar(value), kind=kind, text=text, constant=value)


def _made(expression: pc.Expression) -> _Term:
    return _Term(expression=expression, kind="a condition", text="this")


def _balanced(function: _Function, parts: Sequence[pc.Expression]) -> pc.Expression:
    """Join parts as a tree that is as flat as can be."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return function(_balanced(function, parts[:half]), _balanced(function, parts[half:]))


def _shown(token: Token) -> str:
    return token.text or "the end"


def _plain(type_: pa.DataType) -> pa.DataType:
    """Return the type to compare in: dictionaries, decimals and nulls have few functions in Arrow."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    if pa.types.is_null(type_):
        return pa.string()
    return pa.float64() if pa.types.is_decimal(type_) else type_


def _kind(type_: pa.DataType) -> str:
    checks = {
        "a truth value": [pa.types.is_boolean],
        "a number": [pa.types.is_integer, pa.types.is_floating],
        "text": [pa.types.is_string, pa.types.is_large_string],
        "a time": [pa.types.is_timestamp, pa.types.is_date],
    }
    for kind, found in checks.items():
        if any(check(type_) for check in found):
            return kind
    return str(type_)
