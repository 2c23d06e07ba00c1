"""Conditions on columns as text, such as `end_s - start_s > 2 and source like 'a%'`, for Arrow.

Grammar:

    or_     = and_ ("or" and_)*
    and_    = not_ ("and" not_)*
    not_    = "not" not_ | test
    test    = sum [("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") sum
                  | ["not"] "in" "(" literal ("," literal)* ")" | ["not"] "like" string
                  | "is" ["not"] "null"]
    sum     = product (("+" | "-") product)*
    product = atom (("*" | "/") atom)*
    atom    = "-" atom | "(" or_ ")" | literal | name

Words may be in capitals. Strings are in single quotes, doubled inside; names may be in double quotes. In
`like`, % stands for any text and _ for one character.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.errors import ConfigError

#: Longer or deeper text is none that a person wrote.
MAX_CHARACTERS, MAX_DEPTH = 100_000, 50
#: Arrow evaluates `a or b or ...` as deep as it is long, and 10,000 of them end the process.
MAX_OPERATIONS = 1000
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
    |(?P<string>'(?:[^']|'')*')
    |(?P<quoted>"[^"]+")
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>==|!=|<>|<=|>=|[=<>+\-*/(),]))""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CALCULATE: dict[str, Callable[[Any, Any], Any]] = {
    "or": operator.or_,
    "and": operator.and_,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_WORDS = {"and", "or", "not", "in", "like", "is", "null", "true", "false"}
_CONSTANTS = {"true": True, "false": False}


def parse_where(text: str) -> pc.Expression:
    """Return a condition as an expression. Raises ConfigError, which shows the place."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"where: {len(text)} characters are more than {MAX_CHARACTERS}")
    return _Parser(text).whole()


class _Parser:
    """Reads one text, token by token. A token is (kind, text, place)."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth, self._operations = text, 0, 0, 0
        self._tokens: list[tuple[str, str, int]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None or match.lastgroup is None:
                self._fail("this cannot be read", place)
            found = match[match.lastgroup]
            kind = match.lastgroup
            if kind == "word" and found.lower() in _WORDS:
                kind, found = "sign", found.lower()
            self._tokens.append((kind, found, match.start(match.lastgroup)))
            place = match.end()
        self._tokens.append(("end", "", len(text)))

    def whole(self) -> pc.Expression:
        found = self._or()
        if self._tokens[self._at][0] != "end":
            self._fail("the condition should end here")
        return self._expression(found)

    def _or(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail("it is nested too deeply")
        found = self._and()
        while self._take("or"):
            found = self._calculate("or", found, self._and())
        self._depth -= 1
        return found

    def _and(self) -> Any:
        found = self._not()
        while self._take("and"):
            found = self._calculate("and", found, self._not())
        return found

    def _not(self) -> Any:
        inverted = False
        while self._take("not"):
            inverted = not inverted
        found = self._test()
        return ~self._expression(found) if inverted else found

    def _test(self) -> Any:
        left = self._sum()
        for sign, compare in _COMPARE.items():
            if self._take(sign):
                return compare(self._expression(left), self._expression(self._sum()))
        if self._take("is"):
            inverted = self._take("not")
            self._need("null")
            found = self._expression(left).is_null()
        else:
            inverted = self._take("not")
            if self._take("in"):
                found = self._is_in(self._expression(left))
            elif self._take("like"):
                found = pc.match_like(self._expression(left), self._string())
            elif inverted:
                self._fail("in or like should follow `not` here")
            else:
                return left
        return ~found if inverted else found

    def _is_in(self, left: pc.Expression) -> pc.Expression:
        """Return whether a value is in the list that follows; of null, null, as in SQL."""
        found: pc.Expression = pc.if_else(
            left.is_valid(), left.isin(self._list()), pc.scalar(pa.scalar(None, pa.bool_()))
        )
        return found

    def _sum(self) -> Any:
        found = self._product()
        while sign := self._take("+") or self._take("-"):
            found = self._calculate(sign, found, self._product())
        return found

    def _product(self) -> Any:
        found = self._atom()
        while sign := self._take("*") or self._take("/"):
            found = self._calculate(sign, found, self._atom())
        return found

    def _calculate(self, sign: str, left: Any, right: Any) -> pc.Expression:
        self._operations += 1
        if self._operations > MAX_OPERATIONS:
            self._fail(
                f"it has more than {MAX_OPERATIONS} operations; a list, `x in (...)`, has none"
            )
        found: pc.Expression = _CALCULATE[sign](self._expression(left), self._expression(right))
        return found

    def _atom(self) -> Any:
        negative = False
        while self._take("-"):
            negative = not negative
        found = self._primary()
        if not negative:
            return found
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return -found if is_number else pc.negate(self._expression(found))

    def _primary(self) -> Any:
        kind, found, _ = self._tokens[self._at]
        if kind in ("word", "quoted"):
            self._at += 1
            return pc.field(found.strip('"'))
        if self._take("("):
            inner = self._or()
            self._need(")")
            return inner
        if kind not in ("number", "string") and found not in _CONSTANTS:
            self._fail("a column, a value or ( should be here")
        return self._literal()

    def _literal(self) -> Any:
        kind, found, _ = self._tokens[self._at]
        sign = 1
        if kind == "sign" and found == "-" and self._tokens[self._at + 1][0] == "number":
            self._at, sign = self._at + 1, -1
            kind, found, _ = self._tokens[self._at]
        if kind == "number":
            self._at += 1
            return sign * (int(found) if found.isdigit() else float(found))
        if found in _CONSTANTS and kind == "sign":
            self._at += 1
            return _CONSTANTS[found]
        return self._string()

    def _string(self) -> str:
        kind, found, _ = self._tokens[self._at]
        if kind != "string":
            self._fail("a value should be here; text is in single quotes")
        self._at += 1
        return found[1:-1].replace("''", "'")

    def _list(self) -> list[Any]:
        self._need("(")
        values = [self._literal()]
        while self._take(","):
            values.append(self._literal())
        self._need(")")
        if len({type(value) for value in values} - {float}) > 1:
            self._fail("the values of a list should be of one kind")
        return values

    def _take(self, wanted: str) -> str:
        """Go on if this sign or word is next; returns it, or nothing."""
        kind, found, _ = self._tokens[self._at]
        if kind != "sign" or found != wanted:
            return ""
        self._at += 1
        return wanted

    def _need(self, wanted: str) -> None:
        if not self._take(wanted):
            self._fail(f"{wanted} should be here")

    def _expression(self, value: Any) -> pc.Expression:
        return value if isinstance(value, pc.Expression) else pc.scalar(value)

    def _fail(self, what: str, place: int | None = None) -> NoReturn:
        at = self._tokens[self._at][2] if place is None else place
        raise ConfigError(
            f"where: {what}: {self._text[:at]}>>>{self._text[at:]}\nIt is a condition on columns, such as "
            "width >= 480 and source like 'a%'."
        )
