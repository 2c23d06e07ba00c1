"""Which columns of a table to read, and what is said where it lacks one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentcache.errors import CorpusError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Columns to read. where: the table, for messages. text: those read as strings in any case.

    row_word: what a row is in messages. url: of the table. media: columns of sources, of which files
    that are in the table become the URLs of their rows. texts: of those in `text` the one that may hold a
    list of strings instead, several captions per source.
    """

    where: str
    required: Sequence[str]
    optional: Sequence[str]
    text: frozenset[str]
    row_word: str = "line"
    url: str = ""
    media: frozenset[str] = frozenset()
    texts: str | None = None

    def choose(self, have: Sequence[str]) -> list[str]:
        """Return the columns to read out of those that the table has; raises CorpusError."""
        for name in self.required:
            if name not in have:
                raise CorpusError(
                    f"{self.where} has no column {name!r}.{did_you_mean(name, have)} It has: "
                    f"{', '.join(map(repr, have)) or 'none'}. Name the columns in corpus.columns, "
                    "such as columns: {video: path, caption: text}."
                )
        chosen = list(dict.fromkeys([*self.required, *(c for c in self.optional if c in have)]))
        for name in chosen:
            if have.count(name) > 1:
                raise CorpusError(
                    f"{self.where} has {have.count(name)} columns {name!r}; rename one."
                )
        return chosen
