"""What is in the pages of the documentation: blocks of code, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
_IMAGE = re.compile(r'<(?:img|source)\b[^>]*\b(?:src|srcset)="([^"]+)"')
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
#: What a table of commands says of an argument rather than to the shell.
_OPTIONAL = re.compile(r" \[[^\]]*\]")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of the page, where it begins."""

    language: str
    text: str
    line: int


def blocks(path: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in some languages, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], text[: match.start()].count("\n") + 1)
        for match in _FENCE.finditer(text)
        if match[1] in languages
    ]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[str]:
    """The targets of a page's links, and its pictures."""
    text = prose(path)
    return [*_LINK.findall(text), *_IMAGE.findall(text)]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = _HEADING.findall(prose(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each command in a page's bash blocks, and of those to latentcache in its text."""
    for block in blocks(path, "bash"):
        joined = block.text.replace("\\\n", " ")
        for line in joined.splitlines():
            for part in re.split(r"&&|;", line):
                if words := shlex.split(part, comments=True):
                    yield words
    for span in _SPAN.findall(prose(path)):
        if re.match(r"python -m |python \S+\.py", span):
            yield shlex.split(_OPTIONAL.sub("", span))
        elif span.startswith("latentcache "):
            yield [*span.split()[:2], *re.findall(r"--[\w-]+", span)]
