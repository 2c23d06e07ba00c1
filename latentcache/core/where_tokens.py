"""The tokens of a condition as text, for `where`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from latentcache.errors import ConfigError

#: Arrow evaluates recursively: its stack overflows at some ten thousand levels.
MAX_OPERATORS = 1000
#: Characters of a long text that a message shows, before and after what is wrong.
SHOWN = 80

_TOKEN = re.compile(
    r"""(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | `(?P<quoted>[^`]+)`
    | (?P<name>[^\W\d]\w*)
    | (?P<sign><=|>=|==|!=|<>|[=<>()+\-*/,])
    | (?P<wrong>&&|\|\||\S)""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "like", "ilike", "contains", "is", "null", "true", "false"}
_HINTS = {
    **dict.fromkeys(("&&", "&"), ": write 'and'"),
    **dict.fromkeys(("||", "|"), ": write 'or'"),
    **dict.fromkeys(("!", "~"), ": write 'not'"),
    **dict.fromkeys(("'", '"', "`"), ": its closing quote is missing"),
    ".": ": a column whose name is no plain word stands in `backticks`",
}


@dataclass(frozen=True, kw_only=True)
class Token:
    """A piece of a text. kind: number, text, name, word (of the grammar, in lower case), sign or end."""

    kind: str
    text: str
    start: int


def tokens_of(text: str) -> list[Token]:
    """Return a text's tokens; the last is its end. Raises ConfigError."""
    tokens = [_token(match, text) for match in _TOKEN.finditer(text)]
    if not tokens:
        raise wrong(text, "there is no condition", 0)
    num_operators = sum(token.kind == "word" or token.text in "+-*/" for token in tokens)
    if num_operators > MAX_OPERATORS:
        said = f"more than {MAX_OPERATORS} operators: write long lists as column in (1, 2, ...)"
        raise wrong(text, said, len(text))
    return [*tokens, Token(kind="end", text="", start=len(text))]


def wrong(text: str, said: str, start: int) -> ConfigError:
    """Return the error that says what is wrong at a place of a text."""
    shown = text
    if len(text) > 2 * SHOWN:
        shown = f"...{text[max(start - SHOWN, 0) : start + SHOWN]}..."
    return ConfigError(f"where: {said} (character {start + 1} of: {shown})")


def _token(match: re.Match[str], text: str) -> Token:
    kind = str(match.lastgroup)
    found = match[kind]
    if kind == "wrong":
        said = f"{found} is no part of a condition{_HINTS.get(found, '')}"
        raise wrong(text, said, match.start())
    if kind == "name" and found.lower() in _WORDS:
        kind, found = "word", found.lower()
    return Token(kind="name" if kind == "quoted" else kind, text=found, start=match.start())
